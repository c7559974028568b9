"""The Trainer's own checkpoints of several ranks, and of one process that several ranks resume from."""

from __future__ import annotations

import functools
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

GLOBAL_BATCH = 8
SAVED_AT = 12  # in the middle of the third of 5 steps an epoch
STEPS = 30
OPTIMIZERS = {"emonavi": 2e-3, "emofact": 2e-3, "emolynx": 5e-3}
"""Name → a learning rate at which the emotion speaks."""


class Notes(tiny.Felt):
    """Notes the emotion with which training begins, and the one that goes into the checkpoint."""

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        super().on_train_begin(args, state, control, optimizer=optimizer, **kwargs)
        self.at_begin = asdict(unwrap(optimizer).emotion)

    def on_save(self, args, state, control, optimizer=None, **kwargs) -> None:
        if state.global_step == SAVED_AT:
            self.at_save = asdict(unwrap(optimizer).emotion)


def train(folder: Path, *, optim: str, checkpoint: Path | None = None) -> dict[str, Any]:
    """What a rank of a run on the same global batches ends with; from the beginning, or from a checkpoint."""
    notes = Notes()
    # average_tokens_across_devices: see tests.rank_jobs.ddp
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(40), callbacks=[notes], optim=optim,
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", 1)), max_steps=STEPS,
        average_tokens_across_devices=False, learning_rate=OPTIMIZERS[optim],
        save_strategy="steps", save_steps=SAVED_AT,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    # The gradient of a key's bias is 0 but for rounding, and rounding is all that two runs differ in.
    params = [param for name, param in trainer.model.named_parameters() if not name.endswith("key.bias")]
    return {
        "weights": [param.detach().clone() for param in params],
        "at begin": notes.at_begin,
        "at save": notes.at_save if checkpoint is None else None,
        "felt": notes.losses,
        "emotion": asdict(unwrap(trainer.optimizer).emotion),
        "coefficients": [line["emo/coefficient"] for line in tiny.train_lines(trainer)],
    }


def resume(folder: Path, *, optim: str) -> dict[str, Any]:
    """Go on from the checkpoint that a process of its own has left beside the folder of this job."""
    return train(folder, optim=optim, checkpoint=folder.parents[1] / f"alone {optim}" / f"checkpoint-{SAVED_AT}")


emo_hf.register()
JOBS = {f"{optim} went on": functools.partial(train, optim=optim) for optim in OPTIMIZERS} | {
    f"{optim} resumed": functools.partial(resume, optim=optim) for optim in OPTIMIZERS
}
