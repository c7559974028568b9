"""DeepSpeed ZeRO-1, 2 and 3 through the Trainer, on its CPU accelerator."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch.nn.functional import cross_entropy

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import LAWS
from tests import tiny
from tests.emo_cases import lr_for, rule_of
from tests.rank_jobs.kinds import kind_of_state
from tests.ranks import numbers

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone, as elsewhere: nothing is compiled

SAVED_AT, STEPS = 6, 12
LEAPS = (3, 8)  # steps whose loss is twice as large, for the emotion to feel
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": STEPS,
    "average_tokens_across_devices": False,  # see tests.rank_jobs.ddp
    "weight_decay": 0.1,  # so that there are two groups which differ
    "max_grad_norm": 0.0,
}


def train(
    folder: Path, *, stage: int | None, optim: str, offload: bool = False, resume: str | None = None, **changes: Any
) -> dict[str, Any]:
    config = {
        "zero_optimization": {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if offload else {})},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    cls = emo_hf.FAMILY[optim]

    def leaping(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return cross_entropy(outputs.logits, labels) * (2.0 if trainer.state.global_step in LEAPS else 1.0)

    certain = "denominator=long" if "denominator" in LAWS[cls.version_named(None).law].options else None
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(24), optim=optim, optim_args=certain,
        learning_rate=lr_for(cls, 1e-2), compute_loss_func=leaping,
        deepspeed=config if stage is not None else None, **(ARGUMENTS | changes),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume and str(folder.parent / resume / f"checkpoint-{SAVED_AT}"))
    optimizer = unwrap(trainer.optimizer)
    # The gradient of a key's bias is 0 but for rounding, and rounding is all that two runs differ in.
    params = [param for name, param in trainer.model.named_parameters() if not name.endswith("key.bias")]
    return {
        "optimizer": type(optimizer).__name__,
        "stage": stage,
        "weights": [(safe_get_full_fp32_param(p) if stage is not None else p).detach().clone() for p in params],
        "emotion": numbers(optimizer.emotion),
        "coefficients": [line["emo/coefficient"] for line in tiny.train_lines(trainer)],
    }


# Of what is kept of a vector, and as a whole: under ZeRO all parameters are flat vectors.
KINDS = list({kind_of_state(cls)[1:]: name for name, cls in reversed(emo_hf.FAMILY.items())}.values())
STAGE_OF = {"emonavi": 3, "emolynx": 1}
"""Stages of ZeRO that optimizers are tried with; 2 for the others."""

ALIKE = [name for name in KINDS if rule_of(emo_hf.FAMILY[name]).takes_parts()]
"""Optimizers that see no difference between a matrix, a flat vector and a part of one."""

SAVING = {"emonavi": {"save_strategy": "steps", "save_steps": SAVED_AT}}

JOBS = {f"{optim} plain": functools.partial(train, stage=None, optim=optim) for optim in ALIKE}
JOBS |= {
    optim: functools.partial(train, stage=STAGE_OF.get(optim, 2), optim=optim, **SAVING.get(optim, {}))
    for optim in KINDS
}
JOBS["resumed"] = functools.partial(train, stage=3, optim="emonavi", resume="emonavi")
OFFLOADED = {"emonavi offloaded": (2, "emonavi"), "emolynx offloaded": (3, "emolynx")}
JOBS |= {
    name: functools.partial(train, stage=stage, optim=optim, offload=True)
    for name, (stage, optim) in OFFLOADED.items()
}
