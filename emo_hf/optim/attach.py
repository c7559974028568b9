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
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.options import TABLE
from emo_hf.reading import read_value

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
    inner = _innermost(optimizer)
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
        said = average.give_way(f"{name}, which keeps an average of the weights of its own (it has eval()),")
        if said is not None:
            logger.warning(said)
    return Attachment(inner, EmotionEngine(made, sync, name), average)


def _innermost(optimizer: Any) -> Any:
    seen: list[Any] = []
    while hasattr(optimizer, "optimizer") and all(optimizer is not known for known in seen):
        seen.append(optimizer)
        optimizer = optimizer.optimizer
    return optimizer
