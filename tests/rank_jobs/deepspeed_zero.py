"""DeepSpeed ZeRO-1, 2 and 3 through the Trainer, on its CPU accelerator."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported

from deepspeed.utils import safe_get_full_fp32_param

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import LAWS
from tests import tiny
from tests.emo_cases import lr_for, rule_of
from tests.rank_jobs.kinds import one_of_each_kind
from tests.ranks import numbers

ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 4,
    "average_tokens_across_devices": False,  # see tests.rank_jobs.ddp
    "weight_decay": 0.1,  # so that there are two groups which differ
    "max_grad_norm": 0.0,
}


def train(
    folder: Path,
    *,
    stage: int | None,
    optim: str,
    resume: Path | None = None,
    offload: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    config = {
        "zero_optimization": {"stage": stage, **(offload or {})},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    cls = emo_hf.FAMILY[optim]
    certain = "denominator=long" if "denominator" in LAWS[cls.version_named(None).law].options else None
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(40), optim=optim, optim_args=certain,
        learning_rate=lr_for(cls, 5e-3),
        deepspeed=config if stage is not None else None, **(ARGUMENTS | changes),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    optimizer = unwrap(trainer.optimizer)
    # The gradient of a key's bias is 0 but for rounding, and rounding is all that two runs differ in.
    params = [param for name, param in trainer.model.named_parameters() if not name.endswith("key.bias")]
    return {
        "optimizer": type(optimizer).__name__,
        "weights": [(safe_get_full_fp32_param(p) if stage is not None else p).detach().clone() for p in params],
        "emotion": numbers(optimizer.emotion),
        "coefficients": [line["emo/coefficient"] for line in tiny.train_lines(trainer)],
    }


def train_in_two_parts(folder: Path, *, stage: int) -> dict[str, Any]:
    train(folder, stage=stage, optim="emonavi", save_strategy="steps", save_steps=10)
    return train(folder, stage=stage, optim="emonavi", resume=folder / "checkpoint-10")


KINDS = [cls.__name__.lower() for cls in one_of_each_kind(emo_hf.FAMILY.values())]
STAGES = {1: ["emonavi"], 2: KINDS, 3: ["emonavi", "emolynx"]}
"""Stage of ZeRO → the optimizers that are tried with it."""

ALIKE = [name for name in KINDS if rule_of(emo_hf.FAMILY[name]).takes_parts()]
"""Optimizers that see no difference between a matrix, a flat vector and a part of one."""

PLAIN = {f"{optim} plain": functools.partial(train, stage=None, optim=optim) for optim in ALIKE}
SHARDED = {
    f"{optim} {stage}": functools.partial(train, stage=stage, optim=optim)
    for stage, names in STAGES.items()
    for optim in names
}
OFFLOADS = ((2, "emonavi"), (3, "emolynx"))
RESUMED = {f"resumed {stage}": functools.partial(train_in_two_parts, stage=stage) for stage in (3,)}
OFFLOADED = {
    f"{optim} offloaded {stage}": functools.partial(
        train, stage=stage, optim=optim, offload={"offload_optimizer": {"device": "cpu"}}
    )
    for stage, optim in OFFLOADS
}
JOBS = PLAIN | SHARDED | RESUMED | OFFLOADED
