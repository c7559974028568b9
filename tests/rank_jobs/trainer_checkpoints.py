"""The Trainer's own checkpoints of several ranks, and of one process that several ranks resume from."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import LAWS
from tests import tiny
from tests.emo_cases import lr_for
from tests.ranks import numbers

GLOBAL_BATCH = 8
SAVED_AT = 4  # in the middle of an epoch of 3 steps
STEPS = 9
LEAPS = (2, 5)  # steps whose loss is twice as large, for the emotion to feel
OPTIMIZERS = ("emonavi", "emofact", "emovoid")
"""With state of each parameter, with means over it, and with a memory beside the emotion; `test_resume` has all."""


class Notes(tiny.Felt):
    """Notes the emotion with which training begins, the one that goes into the checkpoint, and the step."""

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        super().on_train_begin(args, state, control, optimizer=optimizer, **kwargs)
        self.at_begin = numbers(unwrap(optimizer).emotion)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.step = state.global_step

    def on_save(self, args, state, control, optimizer=None, **kwargs) -> None:
        if state.global_step == SAVED_AT:
            self.at_save = numbers(unwrap(optimizer).emotion)


def train(folder: Path, *, optim: str, checkpoint: Path | None = None) -> dict[str, Any]:
    """What a rank of a run on the same global batches ends with; from the beginning, or from a checkpoint."""
    notes = Notes()
    cls = emo_hf.FAMILY[optim]

    def leaping(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return cross_entropy(outputs.logits, labels) * (2.0 if notes.step in LEAPS else 1.0)

    # Otherwise the rounding of the loss, which is another with two ranks, may decide what some laws do.
    certain = "denominator=long" if "denominator" in LAWS[cls.version_named(None).law].options else None
    # average_tokens_across_devices: see tests.rank_jobs.ddp
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(24), callbacks=[notes], optim=optim,
        optim_args=certain, learning_rate=lr_for(cls, 2e-3), max_steps=STEPS, compute_loss_func=leaping,
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", 1)),
        average_tokens_across_devices=False, save_strategy="steps", save_steps=SAVED_AT,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    # The gradient of a key's bias is 0 but for rounding, and rounding is all that two runs differ in.
    params = [param for name, param in trainer.model.named_parameters() if not name.endswith("key.bias")]
    return {
        "weights": [param.detach().clone() for param in params],
        "at begin": notes.at_begin,
        "at save": notes.at_save if checkpoint is None else None,
        "felt": notes.losses,
        "emotion": numbers(unwrap(trainer.optimizer).emotion),
        "memory": unwrap(trainer.optimizer).emotion_state()["rule"],
        "coefficients": [line["emo/coefficient"] for line in tiny.train_lines(trainer)],
        "scalars": [line["emo/scalar"] for line in tiny.train_lines(trainer)],
    }


def resume(folder: Path, *, optim: str) -> dict[str, Any]:
    """Go on from the checkpoint that a process of its own has left beside the folder of this job."""
    return train(folder, optim=optim, checkpoint=folder.parents[1] / f"alone {optim}" / f"checkpoint-{SAVED_AT}")


JOBS = {f"{optim} went on": functools.partial(train, optim=optim) for optim in OPTIMIZERS} | {
    f"{optim} resumed": functools.partial(resume, optim=optim) for optim in OPTIMIZERS
}
