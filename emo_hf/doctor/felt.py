"""Which losses laws are given, noted where they come in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from emo_hf.laws.law import Law

TOLERANCE = 1e-3
"""Of the loss: logs are rounded, and averages are taken in another order."""


@contextlib.contextmanager
def noting_felt() -> Iterator[list[tuple[Law, float]]]:
    """Note every loss that any law of this process is given, as (law, loss)."""
    noted: list[tuple[Law, float]] = []
    depth = 0

    def noting(feel: Callable[[Law, float], Any]) -> Callable[[Law, float], Any]:
        @functools.wraps(feel)
        def wrapped(law: Law, loss: float) -> Any:
            nonlocal depth
            if not depth:  # and not a law that asks the one that it is made of
                noted.append((law, loss))
            depth += 1
            try:
                return feel(law, loss)
            finally:
                depth -= 1

        return wrapped

    own: list[Any] = [kind for kind in _kinds(Law) if "feel" in vars(kind)]
    before = [kind.feel for kind in own]
    for kind, feel in zip(own, before, strict=True):
        kind.feel = noting(feel)
    try:
        yield noted
    finally:
        for kind, feel in zip(own, before, strict=True):
            kind.feel = feel


def _kinds(law: Any) -> list[Any]:
    return [law, *(kind for sub in law.__subclasses__() for kind in _kinds(sub))]


def agree(ours: float, theirs: float) -> bool:
    """Whether two numbers are the same loss."""
    return abs(ours - theirs) <= TOLERANCE * max(abs(ours), abs(theirs)) + 1e-6


def first_difference(felt: Sequence[float], other: Sequence[float]) -> int | None:
    """The index of the first step at which they are not the same loss, None if they are everywhere."""
    return next((i for i, pair in enumerate(zip(felt, other, strict=False)) if not agree(*pair)), None)
