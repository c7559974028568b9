"""What a step of a real Trainer job costs with our optimizers, as a multiple of the same job's with fused AdamW.

    python scripts/benchmark_trainer.py                  # full fine-tuning and LoRA: some minutes on 2 cores
    python scripts/benchmark_trainer.py --rounds 1       # a quick look

Jobs log their metrics at every step. In each round every optimizer trains a short job, made anew, the reference two of
them; a job's median step is set against that of the reference's first job in the same round, so that a machine that
slows down slows both. The line of the second tells what the measurement itself scatters by: two equal jobs differ with
where their memory lies. `own` is what the jobs really differ in, and is hardly disturbed by the rest: the time in the
optimizer's step, the loss tap and our callback, beyond that in AdamW's step, as a share of the whole step.

The model is a BERT of 11 million parameters with random weights, the data are random tokens. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from measuring import arguments, finish, machine, parsed, quartiles, table
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)
from transformers.trainer_callback import PrinterCallback

import emo_hf
from emo_hf.integrations import accelerate as loss_tap

REFERENCE = "adamw_torch_fused"
AGAIN = f"{REFERENCE} again"
WORDS, LABELS = 30522, 6


def model(kind: str) -> nn.Module:
    """A BERT, all of it trained, or with a LoRA adapter."""
    torch.manual_seed(0)
    made = BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
            num_labels=LABELS,
        )
    )  # fmt: skip
    if kind == "full":
        return made
    return get_peft_model(made, LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["query", "key", "value"]))


def examples(count: int, length: int) -> list[dict[str, Any]]:
    """Random tokens with random labels."""
    tokens = torch.randint(0, WORDS, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[0]) % LABELS} for row in tokens]


class Own:
    """Adds up the time in what the jobs differ in."""

    seconds = 0.0

    @classmethod
    def watch(cls, owner: Any, name: str) -> None:
        """Have the time in a function of a module or class counted."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                cls.seconds += time.perf_counter() - begin

        setattr(owner, name, watched)


@dataclass
class Clock(TrainerCallback):
    """Notes each step's time from its beginning to the next one's, so that its log line is in it; and its own part."""

    steps: list[tuple[float, float]] = field(default_factory=list)
    _last: tuple[float, float] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter(), Own.seconds
        if self._last is not None:
            self.steps.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now


def job(optim: str, kind: str, options: argparse.Namespace) -> tuple[float, float]:
    """Median time of a step of one job, and its own part of it, in seconds."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, optim=optim.split()[0], learning_rate=1e-5, logging_steps=1,
            max_steps=options.warmup + options.steps + 1, per_device_train_batch_size=options.batch,
            save_strategy="no", disable_tqdm=True, report_to=options.report_to,
            use_cpu=options.device.type == "cpu",
        )  # fmt: skip
        data = examples(64 * options.batch, options.length)
        trainer = Trainer(model(kind), args, train_dataset=data, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    whole, own = zip(*clock.steps[options.warmup :], strict=True)
    return statistics.median(whole), statistics.median(own)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, output="benchmark_trainer")
    parser.add_argument("--jobs", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--only", nargs="+", default=["emonavi", "emofact", "emolynx"], help="values of --optim")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=16, help="steps of a job that count")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them that do not")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens of an example")
    parser.add_argument("--report-to", default="none", help="a reporter of the Trainer, such as tensorboard")
    options = parsed(parser, argv)
    logging.set_verbosity_error()
    emo_hf.register()
    Own.watch(torch.optim.AdamW, "step")
    Own.watch(emo_hf.EmoOptimizer, "step")
    Own.watch(loss_tap, "feed")
    for event in ("on_log", "on_step_end"):
        Own.watch(emo_hf.EmoCallback, event)
    print(machine(options.device, ["transformers", "peft"]))
    rows, results = [], []
    for kind in options.jobs:
        names = [REFERENCE, AGAIN, *options.only]
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                taken[name].append(job(name, kind, options))
        for name, mine in taken.items():
            pairs = list(zip(mine, taken[REFERENCE], strict=True))
            low, middle, high = quartiles([one[0] / other[0] for one, other in pairs])
            own = statistics.median((one[1] - other[1]) / other[0] for one, other in pairs)
            rate = 1 / statistics.median(one[0] for one in mine)
            rows.append([name, kind, f"{rate:.2f}", f"{middle:.3f} ({low:.3f} … {high:.3f})", f"{100 * own:+.2f} %"])
            results.append({"optim": name, "kind": kind, "seconds": mine, "time": middle, "own": own})
            print(*rows[-1], sep="   ", flush=True)
    text = table(["optim", "job", "steps per second", "time / fused AdamW", "own, beyond AdamW's"], rows)
    finish(options, {"trainer": text}, results, ["transformers", "peft"])


if __name__ == "__main__":
    main()
