"""`--compare`: the same job for another optimizer, the way that it is usually trained."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import Trainer

from emo_hf.optim.family import family_names
from emo_hf.train.config import Job, read_job
from emo_hf.train.errors import RecipeError, one_line
from emo_hf.trainer.options import GROUP_OPTIONS, parse_optim_args, read_options
from emo_hf.trainer.param_groups import GroupOptions, build_param_groups

logger = logging.getLogger(__name__)

WARMUP = 0.06
"""Share of the steps, where the job has no warm-up of its own."""

_CONSTANT = ("constant", "constant_with_warmup")


def second_job(arguments: Sequence[str], job: Job, steps: int) -> Job:
    """The job with the other optimizer, a linear schedule (or the job's own) and a given number of steps.

    Data, seed, initial weights and learning rates of roles are those of the job. It has a folder of its own inside the
    job's, where it replaces an earlier one.

    Args:
        arguments: what the job was read from.
        job: the job.
        steps: how long it shall train.

    Raises:
        RecipeError: if the optimizer cannot be had.
    """
    optim, training = str(job.comparison.compare), job.training
    rates = _rates_of_roles(job)
    changes = {
        "optim": optim,
        "emotion": "",
        "emotion_args": "",
        "optim_args": ",".join(f"{key}={value}" for key, value in rates.items()) if optim in family_names() else "",
        "learning_rate": job.comparison.compare_learning_rate or training.learning_rate,
        "max_steps": steps,
        "lr_scheduler_type": "linear" if training.lr_scheduler_type in _CONSTANT else training.lr_scheduler_type.value,
        "warmup_steps": training.warmup_steps if training.get_warmup_steps(steps) else math.ceil(WARMUP * steps),
        "output_dir": os.path.join(str(training.output_dir), _folder_of(optim)),
        "overwrite": "true",
        "resume_from_checkpoint": "false",
    }
    second = read_job([*arguments, *(f"--{key}={value}" for key, value in changes.items())])
    try:
        Trainer.get_optimizer_cls_and_kwargs(second.training)
    except (ValueError, ImportError, RuntimeError) as error:
        raise RecipeError(f"compare: {optim} cannot be used here: {one_line(error)}") from error
    return second if optim in family_names() else replace(second, roles=read_options(rates).roles)


def _folder_of(optim: str) -> str:
    return "adamw" if optim == "adamw_torch_fused" else optim


def _rates_of_roles(job: Job) -> dict[str, object]:
    if job.training.optim.value not in family_names():
        return {}
    return {key: value for key, value in parse_optim_args(job.training.optim_args).items() if key in GROUP_OPTIONS}


def give_roles(trainer: Trainer, roles: Mapping[str, GroupOptions]) -> None:
    """Make the Trainer's own optimizer with learning rates of roles, which the Trainer does not know."""
    cls, kwargs = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    makes_groups = kwargs.keys() & {"params", "model", "optimizer_dict"}
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or makes_groups:
        logger.warning("%s is trained with one learning rate for all roles: it makes its groups itself.", cls.__name__)
        return
    groups = build_param_groups(
        trainer.model, lr=kwargs.pop("lr"), weight_decay=trainer.args.weight_decay, roles=roles
    )
    trainer.optimizer = cls(groups, **kwargs)
