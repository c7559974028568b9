"""Peak memory of Trainer runs: optimizers, their state in 8 bits, steps in backward; each in a process of its own.

    python scripts/benchmark_memory.py                           # 2 minutes on one core
    python scripts/benchmark_memory.py --width 1024 --depth 12   # a larger model
    python scripts/benchmark_memory.py --device cuda --dtype bfloat16

Each run makes a decoder with random weights and a Trainer, and takes some steps on random tokens. What is measured
begins when the model is there: on a CPU the highest resident memory beyond what the process had then (Linux), on CUDA
`torch.cuda.max_memory_allocated` beyond the weights. So the figures hold gradients, the optimizer's state and
activations; batch and length are small, so that these do not hide the others. AdamW in float32 needs 4 bytes of
gradient and 8 of state per parameter. Resident memory scatters by some percent.

Names that this version does not know are left out with a line that says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import extra_memory, state_bytes, write_report

REFERENCE = "adamw_torch_fused"
IN_BACKWARD = "step_in_backward=true"
RUNS: dict[str, tuple[str, str | None]] = {
    REFERENCE: (REFERENCE, None),
    **{name: (name, None) for name in ("emonavi", "emolynx", "emofact")},
    **{f"{name}, in backward": (name, IN_BACKWARD) for name in ("emonavi", "emolynx", "emofact")},
    **{name: (name, None) for name in ("emonavi_8bit", "emolynx_8bit")},
    **{f"{name}, in backward": (name, IN_BACKWARD) for name in ("emonavi_8bit", "emolynx_8bit")},
}
"""What the table calls a run → `--optim` and `--optim_args`."""


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        run: a key of `RUNS`.
        parameters: how many there are.
        peak: highest memory beyond the weights, in bytes.
        state: bytes of the optimizer's state.
        loss: of the last step, to see that it trained.
    """

    run: str
    parameters: int
    peak: float
    state: int
    loss: float


def model(options: argparse.Namespace) -> Any:
    """A decoder of the Llama kind with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.words,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.depth,
        num_attention_heads=max(options.width // 64, 1),
        num_key_value_heads=max(options.width // 64, 1),
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(getattr(torch, options.dtype))


def examples(options: argparse.Namespace) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, options.words, (4 * options.batch, options.length), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def measure(run: str, options: argparse.Namespace) -> Result:
    """One run, in this process."""
    from transformers import Trainer, TrainingArguments, logging
    from transformers.trainer_callback import PrinterCallback

    import emo_hf

    logging.set_verbosity_error()
    emo_hf.register()
    torch.set_num_threads(options.threads)
    optim, optim_args = RUNS[run]
    made = model(options)
    device = torch.device(options.device)
    made.to(device)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            optim=optim,
            optim_args=optim_args,
            learning_rate=1e-4,
            max_grad_norm=0.0,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            gradient_checkpointing=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(made, args, train_dataset=examples(options))
        trainer.remove_callback(PrinterCallback)
        peak = extra_memory(lambda: trainer.train(), device)  # type: ignore[arg-type]
    inner = trainer.optimizer.optimizer
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Result(run, sum(p.numel() for p in made.parameters()), peak, state_bytes(inner), losses[-1])


def in_a_process(run: str, argv: Sequence[str]) -> Result | str:
    """One run in a process of its own; what went wrong, if something did."""
    command = [sys.executable, __file__, *argv, "--run", run]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return Result(**json.loads(done.stdout.strip().splitlines()[-1]))


def line(result: Result, reference: Result | None) -> str:
    ratio = "" if reference is None else f"{result.peak / reference.peak:.2f}"
    per = 1 / result.parameters
    return (
        f"| {result.run} | {result.peak / 2**20:.0f} | {ratio} | {result.peak * per:.1f} | {result.state * per:.2f} "
        f"| {result.loss:.3f} |"
    )


HEADER = """\
| run | peak beyond weights, MiB | / fused AdamW | bytes/parameter | of these state | last loss |
|---|---|---|---|---|---|"""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], help="runs by a part of their names; the reference always runs"
    )
    parser.add_argument("--width", type=int, default=512, help="hidden size, a multiple of 64")
    parser.add_argument("--depth", type=int, default=8, help="layers")
    parser.add_argument("--words", type=int, default=8192, help="size of the vocabulary")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=32, help="tokens of an example")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_memory"), help="path of .json")
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options = arguments(argv)
    if options.run:
        print(json.dumps(asdict(measure(options.run, options))))
        return
    from emo_hf.optim.family import family_names

    chosen = [run for run in RUNS if not options.only or run == REFERENCE or any(part in run for part in options.only)]
    print(f"torch {torch.__version__}, {options.device}, {options.dtype}\n\n{HEADER}")
    found: list[Result] = []
    for run in chosen:
        optim = RUNS[run][0]
        if optim.startswith("emo") and optim not in family_names():
            print(f"left out: {run}, since --optim {optim} is not known to this version", flush=True)
            continue
        result = in_a_process(run, argv)
        if isinstance(result, str):
            print(f"failed: {run}: {result}", flush=True)
            continue
        found.append(result)
        reference = next((other for other in found if other.run == REFERENCE), None)
        print(line(result, reference), flush=True)
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "run")}
    write_report(options.output, {"options": settings, "results": [asdict(result) for result in found]})


if __name__ == "__main__":
    main()
