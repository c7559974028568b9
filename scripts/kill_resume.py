"""Kill a training run with SIGKILL at random moments, resume it, and compare its end with a run that was let alone.

    python scripts/kill_resume.py [--kills 50] [--optim emonavi] [--seed 0]

A tiny model on the CPU saves a checkpoint at every step, so that many of the kills fall into a save. Each life resumes
from `emo_hf.last_whole_checkpoint`. The end has to be the same to the last bit: weights, optimizer state with the
emotion, log lines. Exits with 1 if it is not.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer.checkpoints import what_is_missing

END = "end.pt"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60, help="steps of a run; a run that ends is followed by another")
    parser.add_argument("--optim", default="emonavi")
    parser.add_argument("--longest_life", type=float, default=1.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    emo_hf.register()
    chance = random.Random(options.seed)
    kills = torn = runs = 0
    with tempfile.TemporaryDirectory() as folder:
        left_alone = Path(folder, "left-alone")
        live(left_alone, options)
        while kills < options.kills:
            runs += 1
            run = Path(folder, f"run-{runs}")
            while not (run / END).exists():
                life = chance.uniform(0.0, options.longest_life) if kills < options.kills else None
                kills += live(run, options, life)
                torn += any(what_is_missing(checkpoint) for checkpoint in run.glob("checkpoint-*"))
            differences = compare(torch.load(left_alone / END), torch.load(run / END))
            if differences:
                print(f"run {runs} ended differently: {', '.join(differences)}")
                return 1
    print(f"{kills} kills in {runs} runs, {torn} times a torn checkpoint was there: every run ended the same")
    return 0


def live(folder: Path, options: argparse.Namespace, seconds: float | None = None) -> bool:
    """One life of a run; whether it was killed, as it is after so many seconds of training."""
    folder.mkdir(exist_ok=True)
    begun = folder / "begun"
    begun.unlink(missing_ok=True)
    # Forked, so that a life does not begin with the seconds of the imports.
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder, options))
    process.start()
    if seconds is not None:
        while process.is_alive() and not begun.exists():
            time.sleep(0.002)
        process.join(seconds)
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"a life ended with {process.exitcode}")
    return process.exitcode == -signal.SIGKILL


def train(folder: Path, options: argparse.Namespace) -> None:
    """Train to the end, from the last whole checkpoint on."""
    torch.set_num_threads(1)
    logging.getLogger("emo_hf.trainer.checkpoints").setLevel(logging.ERROR)
    disable_progress_bar()
    set_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=16,
    )  # fmt: skip
    tokens = torch.randint(0, 64, (4 * options.steps, 8), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        output_dir=str(folder), optim=options.optim, optim_args="use_shadow=true", learning_rate=2e-3, logging_steps=1,
        save_steps=1, save_total_limit=3, per_device_train_batch_size=4, max_steps=options.steps, report_to="none",
        disable_tqdm=True, use_cpu=True, logging_strategy="steps",
    )  # fmt: skip
    examples: Any = [{"input_ids": row, "labels": int(row[0]) % 3} for row in tokens]
    trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=examples)
    trainer.remove_callback(PrinterCallback)
    (folder / "begun").touch()
    trainer.train(resume_from_checkpoint=emo_hf.last_whole_checkpoint(folder))
    optimizer = unwrap(trainer.optimizer)
    assert optimizer is not None
    end = {
        "weights": trainer.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lines": [line for line in trainer.state.log_history if "loss" in line],
    }
    torch.save(end, folder / "end.tmp")
    os.replace(folder / "end.tmp", folder / END)


def compare(one: Any, other: Any, name: str = "end") -> list[str]:
    """The places at which two nested structures differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [name]
        return [place for key in one for place in compare(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list):
        if len(one) != len(other):
            return [name]
        return [
            place for i, pair in enumerate(zip(one, other, strict=True)) for place in compare(*pair, f"{name}[{i}]")
        ]
    return [] if one == other else [name]


if __name__ == "__main__":
    sys.exit(main())
