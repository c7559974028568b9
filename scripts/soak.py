"""Train for many steps in one process, with a log line at every step, and see whether memory and time stay flat.

    python scripts/soak.py [--steps 20000] [--optim emonavi]

A tiny model in the Trainer on the CPU. Prints the resident memory and the CPU time per step of each tenth of the run.
The Trainer keeps every log line in `state.log_history`; the run empties it, so that what is left is what training
itself keeps. Exits with 1 if memory grew by more than 5 MB, or the time per step by more than half, from the second
tenth on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from statistics import median
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import emo_hf
from emo_hf.integrations.accelerate import unwrap


class Meter(TrainerCallback):
    """Notes memory and time at the end of each tenth of the run."""

    def __init__(self) -> None:
        self.tenths: list[tuple[float, float]] = []
        self._seconds: list[float] = []
        self._last = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.process_time()  # other processes on the machine shall not count
        if state.global_step > 1:
            self._seconds.append(now - self._last)
        self._last = now
        if state.global_step % (state.max_steps // 10) == 0:
            self.tenths.append((resident_megabytes(), 1e3 * median(self._seconds)))
            self._seconds.clear()
            print(f"{state.global_step:>8} steps  {self.tenths[-1][0]:8.1f} MB  {self.tenths[-1][1]:6.2f} ms a step")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history.clear()


def resident_megabytes() -> float:
    """Memory of this process that lies in RAM (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--optim", default="emonavi")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    emo_hf.register()
    set_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=16,
    )  # fmt: skip
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, optim=options.optim, optim_args="use_shadow=true", logging_steps=1, save_strategy="no",
            per_device_train_batch_size=4, max_steps=options.steps, report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        examples: Any = [{"input_ids": row, "labels": int(row[0]) % 3} for row in torch.randint(0, 64, (64, 8))]
        trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=examples, callbacks=[meter])
        trainer.callback_handler.callbacks = [
            callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ != "PrinterCallback"
        ]
        trainer.train()
    optimizer = unwrap(trainer.optimizer)
    assert optimizer is not None
    assert optimizer.emotion.observations == options.steps
    (memory, duration), (last_memory, last_duration) = meter.tenths[1], meter.tenths[-1]
    print(
        f"from the second tenth to the last: {last_memory - memory:+.1f} MB, "
        f"{100 * (last_duration / duration - 1):+.0f} % time a step"
    )
    return int(last_memory - memory > 5.0 or last_duration > 1.5 * duration)


if __name__ == "__main__":
    sys.exit(main())
