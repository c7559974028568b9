"""What a generation's own defaults are worth where the user left the Trainer's, which say nothing about it."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from emo_hf.optim.version import Version

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from emo_hf.trainer.options import EmoOptions

logger = logging.getLogger(__name__)


def learning_rate_and_betas(
    args: TrainingArguments, version: Version, options: EmoOptions
) -> tuple[float, tuple[float, float]]:
    """The learning rate and betas that an optimizer of a generation is made with.

    The Trainer always hands over its own, whether the user has given any or not. Where its `lr` is a scale around 1,
    the Trainer's default of 5e-5 cannot be meant; where β2 is not 0.999, nor can the Trainer's. A value that happens
    to be the Trainer's default can be had through `optim_args` (beta2), or by one that differs in its last digit.

    Args:
        args: the Trainer's arguments.
        version: the optimizer's generation.
        options: what `optim_args` say, which override betas.
    """
    given_by_nobody = {field.name: field.default for field in dataclasses.fields(args)}
    lr, betas = args.learning_rate, (args.adam_beta1, args.adam_beta2)
    taken = []
    if version.lr_is_a_scale and lr == given_by_nobody["learning_rate"]:
        lr = version.lr
        taken.append(f"lr {lr:g} (a scale, of which the law makes the learning rate)")
    if betas != version.betas and betas == (given_by_nobody["adam_beta1"], given_by_nobody["adam_beta2"]):
        betas = version.betas
        if "beta2" not in options.optimizer:
            taken.append(f"betas {betas}")
    if taken and args.process_index == 0:
        logger.warning(
            "%s %s: %s, since the Trainer's defaults were left.", args.optim.value, version.name, " and ".join(taken)
        )
    return lr, betas
