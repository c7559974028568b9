"""Which optimizers differ in what they keep: enough to show that each kind of state is carried from place to place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from emo_hf import EmoOptimizer


def kind_of_state(cls: type[EmoOptimizer]) -> tuple[Any, ...]:
    """The names of all that an optimizer keeps, for matrices, for vectors, and as a whole."""
    optimizer = cls([torch.zeros(1, requires_grad=True)])
    tensors = (frozenset(optimizer.rule.new_state(torch.empty(shape))) for shape in ((2, 2), (2,)))
    return (*tensors, frozenset(optimizer.rule.memory()))


def one_of_each_kind(optimizers: Iterable[type[EmoOptimizer]]) -> list[type[EmoOptimizer]]:
    """The first of each kind."""
    first: dict[tuple[Any, ...], type[EmoOptimizer]] = {}
    for cls in optimizers:
        first.setdefault(kind_of_state(cls), cls)
    return list(first.values())
