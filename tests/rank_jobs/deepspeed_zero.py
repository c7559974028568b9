"""DeepSpeed ZeRO-1, 2 and 3 through the Trainer, on its CPU accelerator."""

from __future__ import annotations

import functools
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported

from deepspeed.utils import safe_get_full_fp32_param

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 6,
    "learning_rate": 5e-3,
    "average_tokens_across_devices": False,  # see tests.rank_jobs.ddp
    "weight_decay": 0.1,  # so that there are two groups which differ
    "max_grad_norm": 0.0,
}


def train(
    folder: Path, *, stage: int | None, optim: str, resume: Path | None = None, **changes: Any
) -> dict[str, Any]:
    config = {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(40), optim=optim,
        deepspeed=config if stage is not None else None, **(ARGUMENTS | changes),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    optimizer = unwrap(trainer.optimizer)
    # The gradient of a key's bias is 0 but for rounding, and rounding is all that two runs differ in.
    params = [param for name, param in trainer.model.named_parameters() if not name.endswith("key.bias")]
    return {
        "weights": [(safe_get_full_fp32_param(p) if stage is not None else p).detach().clone() for p in params],
        "emotion": asdict(optimizer.emotion),
        "coefficients": [line["emo/coefficient"] for line in tiny.train_lines(trainer)],
    }


def train_in_two_parts(folder: Path, *, stage: int) -> dict[str, Any]:
    train(folder, stage=stage, optim="emonavi", save_strategy="steps", save_steps=15)
    return train(folder, stage=stage, optim="emonavi", resume=folder / "checkpoint-15")


emo_hf.register()
PLAIN = {f"{optim} plain": functools.partial(train, stage=None, optim=optim) for optim in ("emonavi", "emolynx")}
SHARDED = {
    f"{optim} {stage}": functools.partial(train, stage=stage, optim=optim)
    for optim in ("emonavi", "emolynx", "emofact")
    for stage in (1, 2, 3)
}
RESUMED = {f"resumed {stage}": functools.partial(train_in_two_parts, stage=stage) for stage in (1, 2, 3)}
JOBS = PLAIN | SHARDED | RESUMED
