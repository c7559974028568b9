"""Peak memory of Trainer runs: optimizers, state in 8 bits, steps in backward, the average; each in its own process.

    python scripts/benchmark_memory.py --threads 1               # some minutes on one core
    python scripts/benchmark_memory.py --width 1024 --depth 12   # a larger model
    python scripts/benchmark_memory.py --device cuda --dtype bfloat16

Each run makes a decoder with random weights and a Trainer, and takes some steps on random tokens. What is measured
begins when the model is there: on a CPU the highest resident memory beyond what the process had then (Linux), on CUDA
the highest allocated memory beyond the weights. So the figures hold gradients, the optimizer's state and activations;
batch and length are small, so that these do not hide the others. AdamW in float32 needs 4 bytes of gradient and 8 of
state per parameter. Resident memory scatters by some percent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from measuring import arguments, extra_memory, finish, machine, parsed, state_bytes, table

REFERENCE = "adamw_torch_fused"
PLAIN = [REFERENCE, "emonavi", "emolynx", "emofact", "emonavi_8bit", "emolynx_8bit"]
RUNS: dict[str, tuple[str, str]] = {
    **{name: (name, "") for name in PLAIN},
    **{f"{name}, step in backward": (name, "step_in_backward=true") for name in PLAIN[1:]},
    **{f"emonavi, average {kind}": ("emonavi", f"average_weights={kind}") for kind in ("true", "rounded", "cpu")},
}
"""What the table calls a run → `--optim` and `--optim_args`."""


def model(options: argparse.Namespace) -> Any:
    """A decoder of the Llama kind with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = max(options.width // 64, 1)
    config = LlamaConfig(
        vocab_size=options.words, hidden_size=options.width, intermediate_size=4 * options.width,
        num_hidden_layers=options.depth, num_attention_heads=heads, num_key_value_heads=heads,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(getattr(torch, options.dtype))


def measure(run: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process: parameters, peak beyond the weights, bytes of state, last loss."""
    from transformers import Trainer, TrainingArguments, logging
    from transformers.trainer_callback import PrinterCallback

    import emo_hf

    logging.set_verbosity_error()
    emo_hf.register()
    optim, optim_args = RUNS[run]
    made = model(options).to(options.device)
    tokens = torch.randint(0, options.words, (4 * options.batch, options.length))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, optim=optim, optim_args=optim_args or None, learning_rate=1e-4, max_grad_norm=0.0,
            max_steps=options.steps, per_device_train_batch_size=options.batch, gradient_checkpointing=True,
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            use_cpu=options.device.type == "cpu",
        )  # fmt: skip
        trainer = Trainer(made, args, train_dataset=[{"input_ids": row, "labels": row} for row in tokens])
        trainer.remove_callback(PrinterCallback)
        peak = extra_memory(trainer.train, options.device)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "run": run,
        "parameters": sum(param.numel() for param in made.parameters()),
        "peak": peak,
        "state": state_bytes(trainer.optimizer.optimizer),
        "loss": losses[-1],
    }


def in_a_process(run: str, argv: Sequence[str]) -> dict[str, Any] | None:
    """One run in a process of its own, or None with a line that says what went wrong."""
    command = [sys.executable, __file__, *argv, "--run", run]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"left out: {run} ({(done.stderr.strip().splitlines() or ['no word'])[-1]})", file=sys.stderr)
        return None
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments(__doc__, output="benchmark_memory")
    parser.add_argument("--only", nargs="+", default=[], help="runs by a part of their names; AdamW always runs")
    parser.add_argument("--width", type=int, default=512, help="hidden size, a multiple of 64")
    parser.add_argument("--depth", type=int, default=8, help="layers")
    parser.add_argument("--words", type=int, default=8192, help="size of the vocabulary")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=32, help="tokens of an example")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    options = parsed(parser, argv)
    if options.run:
        print(json.dumps(measure(options.run, options)))
        return
    print(f"{machine(options.device, ['transformers'])}; weights in {options.dtype}")
    rows, found = [], []
    for run in RUNS:
        wanted = run == REFERENCE or not options.only or any(part in run for part in options.only)
        if not wanted or (result := in_a_process(run, argv)) is None:
            continue
        found.append(result)
        peak, per = result["peak"], 1 / result["parameters"]
        ratio = peak / found[0]["peak"]
        state = result["state"] * per
        rows.append([run, f"{peak / 2**20:.0f}", f"{ratio:.2f}", f"{peak * per:.1f}", f"{state:.2f}"])
        print(*rows[-1], f"loss {result['loss']:.3f}", sep="   ", flush=True)
    head = ["run", "peak beyond the weights, MiB", "/ fused AdamW", "bytes per parameter", "of these state"]
    finish(options, {"memory": table(head, rows)}, found, ["transformers"])


if __name__ == "__main__":
    main()
