"""An emotion for any optimizer: its learning rates are multiplied in each step and given back after it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.laws import make_law
from emo_hf.laws.v3_1 import V3_1
from emo_hf.losses.rank_mean import GLOBAL
from emo_hf.optim.attachment import MODES, Attachment, attached_to
from emo_hf.optim.average import WeightAverage
from emo_hf.optim.engine import EmotionEngine
from emo_hf.optim.facts import innermost
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.options import TABLE
from emo_hf.reading import read_value

SCALE = 1e-3
"""Under a law that takes the learning rate as a scale around 1, a lower one is an oversight."""

logger = logging.getLogger(__name__)


def attach(
    optimizer: Any,
    law: str = V3_1.name,
    *,
    sync: str = GLOBAL,
    average_weights: bool | str | None = None,
    **law_options: Any,
) -> Attachment:
    """Give an optimizer an emotion that scales its learning rates with the loss.

    The loss arrives by itself through accelerate, by `observe(loss)` of what is returned, or from a closure. In each
    step the learning rates of all groups are multiplied by the law's coefficient, and afterwards they are what they
    were: schedulers and logs see the user's. Whatever the optimizer multiplies by its rate is scaled with it, a
    decoupled weight decay among it. The emotion's state is in the optimizer's own `state_dict()`; one that was loaded
    before is taken up. A copy or a pickle of the optimizer has no emotion.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a wrapper that holds one as `.optimizer`, such as accelerate's.
        law: a law's name, as `emo_law` takes it; `none` for an average of the weights alone, which needs no loss.
        sync: `global`, one emotion for all ranks of a distributed job; `local`, each rank its own.
        average_weights: keep an average of the weights, as the option of emo optimizers of that name: True, False,
            `rounded` or `cpu`; None as the law has it.
        law_options: options of the law.

    Returns:
        The handle: `observe`, `emotion`, `effective_lr`, `metrics()`, `detach()`.

    Raises:
        TypeError: if it is no optimizer, or one whose steps no one loss belongs to, or the law has no such option.
        ValueError: if it has an emotion already, or holds a saved one of another law, or keeps an average of the
            weights of its own and another is asked for, or an argument is not acceptable.
        RuntimeError: later, at its first step, if it moves parameters within backward.
    """
    inner = innermost(optimizer)
    name = type(inner).__name__
    if not isinstance(inner, Optimizer):
        raise TypeError(
            f"attach takes a torch.optim.Optimizer, or a wrapper that holds one as .optimizer; got {name}. Attach to "
            "the optimizer that it is made of"
        )
    if isinstance(inner, EmoOptimizer):
        raise ValueError(f"{name} has an emotion of its own: choose its law with emo_law={law!r}")
    if attached_to(inner) is not None:
        raise ValueError(f"{name} has an emotion already: detach() it first")
    if isinstance(inner, torch.optim.LBFGS):
        raise TypeError(
            "LBFGS evaluates the loss many times a step, and has no one loss that an emotion could follow: use an "
            "optimizer that evaluates it once"
        )
    made = make_law(law, V3_1.name, law_options)
    asked = read_value("average_weights", average_weights, TABLE["average_weights"].read)
    average = WeightAverage(made.averages_weights if asked is None else asked, is_default=asked is None)
    if any(hasattr(inner, mode) for mode in MODES):
        average.give_way(f"{name}, which keeps an average of the weights of its own (it has eval()),")
    takes_a_scale = made.decision.floor > 0.0  # and makes the rate itself; a state that is taken up may change it
    handle = Attachment(inner, EmotionEngine(made, sync, name), average)
    _warn_about_rates(inner, made.label if takes_a_scale else None)
    return handle


def _warn_about_rates(optimizer: Optimizer, law_that_takes_a_scale: str | None) -> None:
    name, groups = type(optimizer).__name__, optimizer.param_groups
    # Where a scheduler has begun with warm-up, the rate itself is 0 now.
    rates = [float(group.get("initial_lr", group["lr"])) for group in groups if group.get("lr") is not None]
    if len(rates) < len(groups):
        logger.warning(
            "%s finds a learning rate by itself (it has none in its groups), so that the emotion feels and logs but "
            "scales nothing there. For Adafactor give lr=… and relative_step=False.",
            name,
        )
    if law_that_takes_a_scale and rates and max(rates) < SCALE:
        logger.warning(
            "The law %s makes the learning rate, and takes the optimizer's as a scale around 1. With lr=%g the steps "
            "of %s are next to nothing: try 1.0 for adapters, 0.01 to 0.1 for a whole model.",
            law_that_takes_a_scale, max(rates), name,
        )  # fmt: skip
