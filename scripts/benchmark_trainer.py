"""Steps per second of real Trainer jobs: ours, metrics logged every step, against `adamw_torch_fused`.

    python scripts/benchmark_trainer.py               # full and LoRA: 4 minutes on 2 cores
    python scripts/benchmark_trainer.py --repeats 1   # a quick look

All jobs are alive at once and take turns of a few steps in one process, each in a thread of its own of which only one
runs at a time; the order changes from round to round. What is compared is a turn with the reference's turn of the same
round, so that a machine that slows down slows both, and the table shows the quartiles of these ratios. `CPU` is the
same for the processor time of the whole process, which other programs disturb less. The reference runs twice: the line
of the second shows what the measurement itself scatters, for two equal jobs differ by some percent with where their
memory happens to lie; `--repeats` makes them anew.

`own` is what the jobs really differ in, and is not disturbed by the rest: the milliseconds per step that are spent in
the optimizer's step, in the loss tap and in the callback that logs the metrics. The last column sets the difference
to the reference's against the whole step of the reference.

The model is a BERT of 11 million parameters with random weights, made on the spot; the data are random tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import quartiles, write_report
from peft import LoraConfig, get_peft_model
from torch import nn
from trainer_turns import Own, Turn, Turns, run
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    logging,
)
from transformers.trainer_callback import PrinterCallback

import emo_hf

REFERENCE = "adamw_torch_fused"
AGAIN = f"{REFERENCE} again"
OURS = tuple(emo_hf.FAMILY)
WORDS = 30522
LABELS = 6


def model(kind: str) -> nn.Module:
    """A BERT of 11 M parameters, all of them trained, or with a LoRA adapter."""
    torch.manual_seed(0)
    made = BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            num_labels=LABELS,
        )
    )
    if kind == "full":
        return made
    return get_peft_model(made, LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["query", "key", "value"]))


def examples(count: int, length: int) -> list[dict[str, Any]]:
    """Random tokens with random labels."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, WORDS, (count, length), generator=generator)
    labels = torch.randint(0, LABELS, (count,), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(label)}
        for row, label in zip(tokens, labels, strict=True)
    ]


def job(optim: str, kind: str, turns: Turns, folder: str, options: argparse.Namespace) -> Trainer:
    """A Trainer that logs every step, and takes its turns."""
    args = TrainingArguments(
        output_dir=folder,
        optim=optim.split()[0],
        learning_rate=1e-5,
        max_steps=options.steps * (options.warmup + options.rounds + 1),
        logging_steps=1,
        per_device_train_batch_size=options.batch,
        save_strategy="no",
        report_to=options.report_to,
        disable_tqdm=True,
        use_cpu=options.device.type == "cpu",
    )
    made = Trainer(model(kind), args, train_dataset=examples(64 * options.batch, options.length), callbacks=[turns])
    made.remove_callback(PrinterCallback)
    return made


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        steps_per_second: by the median of the turns.
        wall, cpu: quartiles of the ratio to the reference's turn of the same round: time, processor time.
        own: median time in what the jobs differ in, in milliseconds per step.
        own_difference: median difference of it to the reference's, as a share of the reference's whole step.
    """

    optim: str
    kind: str
    steps_per_second: float
    wall: tuple[float, float, float]
    cpu: tuple[float, float, float]
    own: float
    own_difference: float


def results(kind: str, taken: dict[str, list[Turn]]) -> list[Result]:
    """What the turns of all jobs of one kind say."""
    base = taken[REFERENCE]
    made = []
    for optim, turns in taken.items():
        pairs = list(zip(turns, base, strict=True))
        made.append(
            Result(
                optim,
                kind,
                1 / statistics.median(turn.wall for turn in turns),
                quartiles([turn.wall / other.wall for turn, other in pairs]),
                quartiles([turn.cpu / other.cpu for turn, other in pairs]),
                1e3 * statistics.median(turn.own for turn in turns),
                statistics.median(turn.own - other.own for turn, other in pairs)
                / statistics.median(other.wall for other in base),
            )
        )
    return made


def measure(kind: str, options: argparse.Namespace) -> list[Result]:
    """All jobs of one kind, taking turns, made anew for each repetition."""
    names = [REFERENCE, AGAIN, *options.only]
    taken: dict[str, list[Turn]] = {name: [] for name in names}
    for repetition in range(options.repeats):
        made = {name: Turns(options.steps) for name in names[repetition:] + names[:repetition]}
        take_turns(kind, made, options)
        for name in names:
            taken[name] += made[name].taken[options.warmup :]
    return results(kind, taken)


def take_turns(kind: str, every: dict[str, Turns], options: argparse.Namespace) -> None:
    """Run one job for each name to its end."""
    names = list(every)
    with tempfile.TemporaryDirectory() as folder:
        # All are made before the first runs: making one resets what accelerate shares among them for a moment.
        jobs = [job(name, kind, turns, f"{folder}/{name}", options) for name, turns in every.items()]
        pairs = zip(jobs, every.values(), strict=True)
        threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in pairs]
        for thread in threads:
            thread.start()
        for number in range(options.warmup + options.rounds + 1):  # the last turn ends with the job, and is not timed
            shift = number % len(names)
            order = [*names[shift:], *names[:shift]]
            for name in order if number % 2 else reversed(order):
                every[name].give()
        for thread in threads:
            thread.join()


HEADER = """\
| optim | job | steps/s | time / fused AdamW | CPU / fused AdamW | own, ms | own − fused AdamW's |
|---|---|---|---|---|---|---|"""


def line(result: Result) -> str:
    wall, cpu = ("{1:.3f} ({0:.3f} … {2:.3f})".format(*ratios) for ratios in (result.wall, result.cpu))
    return (
        f"| {result.optim} | {result.kind} | {result.steps_per_second:.2f} | {wall} | {cpu} "
        f"| {result.own:.2f} | {100 * result.own_difference:+.2f} % |"
    )


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--only", nargs="+", choices=OURS, default=list(OURS), help="optimizers")
    parser.add_argument("--repeats", type=int, default=5, help="how often the jobs are made")
    parser.add_argument("--rounds", type=int, default=8, help="turns that each of them takes")
    parser.add_argument("--warmup", type=int, default=1, help="turns before these, which do not count")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens of an example")
    parser.add_argument("--report-to", default="none", help="a reporter of the Trainer, such as tensorboard")
    parser.add_argument("--threads", type=int, default=None, help="threads that torch may use (default: its choice)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_trainer"), help="path of .json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    emo_hf.register()
    Own.watch_all()
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {options.repeats} times "
        f"{options.rounds} rounds of {options.steps} steps of {options.batch} × {options.length} tokens; medians "
        f"(quartiles)\n\n{HEADER}"
    )
    found: list[Result] = []
    for kind in options.jobs:
        found += measure(kind, options)
        for result in found[-2 - len(options.only) :]:
            print(line(result), flush=True)
    settings = {key: value for key, value in vars(options).items() if key not in ("device", "output")}
    report = {"device": str(options.device), "reference": REFERENCE, "options": settings}
    write_report(options.output, report | {"results": [asdict(result) for result in found]})


if __name__ == "__main__":
    main()
