"""Laws with their hands tied: what a run gains or loses against them is what its emotion is worth.

none              c = 1
constant:1.3      c = 1.3
replay:FILE#RUN   c of another run, step by step: the same values, and no connection with this run's loss
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_hf.laws.decision import Decision

if TYPE_CHECKING:
    from emo_hf.laws.law import Law

CONSTANT = "constant:"
REPLAY = "replay:"


@dataclass(frozen=True, slots=True)
class Ablation(ABC):
    """Takes the place of a law's factors; the law feels, logs and signals as ever.

    Attributes:
        name: what `emo_law` calls it.
    """

    name: str

    @abstractmethod
    def apply(self, decision: Decision) -> Decision:
        """What a step is told in place of the law's decision."""

    def over(self, law: Law) -> Ablation:
        """The ablation of one law, for those that have to know at which step it is."""
        return self


@dataclass(frozen=True, slots=True)
class Constant(Ablation):
    """One factor for all steps.

    Attributes:
        factor: the factor on the learning rate. Weight decay keeps its own rate.
    """

    factor: float

    def apply(self, decision: Decision) -> Decision:
        return replace(decision, coefficient=self.factor, decay_factor=1.0, floor=0.0, skip=False)


@dataclass(frozen=True, slots=True)
class Replay(Ablation):
    """The factors of another run, one a step; where this run goes on for longer, the last one holds.

    Attributes:
        factors: the factors on the learning rate.
        decay_factors: the factors on the rate of the weight decay; empty for 1 throughout.
        floor: the lowest rate that either may come to.
        law: the law whose place is taken, which counts the steps.
    """

    factors: tuple[float, ...]
    decay_factors: tuple[float, ...] = ()
    floor: float = 0.0
    law: Law | None = None

    def over(self, law: Law) -> Replay:
        return replace(self, law=law)

    def apply(self, decision: Decision) -> Decision:
        step = 0 if self.law is None else max(self.law.observations + self.law.skipped - 1, 0)
        decay = _at(self.decay_factors, step) if self.decay_factors else 1.0
        return replace(decision, coefficient=_at(self.factors, step), decay_factor=decay, floor=self.floor, skip=False)


def _at(values: Sequence[float], step: int) -> float:
    return values[min(step, len(values) - 1)]


NONE = Constant("none", 1.0)

ABLATION_NAMES = (CONSTANT + "X", REPLAY + "FILE#RUN", NONE.name)
"""What `emo_law` takes beside the laws, for messages."""


def read_ablation(name: Any) -> Ablation | None:
    """The ablation that a name stands for; None if it is the name of none.

    Args:
        name: `none`, `constant:X` with a factor of at least 0, or `replay:FILE#RUN` with a file of JSON lines, as
            `emo-hf compare` writes them, and the id of a run in it. Without `#RUN` the file must hold one run.

    Raises:
        ValueError: saying what is accepted.
    """
    if name == NONE.name:
        return NONE
    if isinstance(name, str) and name.startswith(CONSTANT):
        return Constant(name, _factor(name))
    if isinstance(name, str) and name.startswith(REPLAY):
        return _replay(name)
    return None


def _factor(name: str) -> float:
    try:
        factor = float(name.removeprefix(CONSTANT))
    except ValueError:
        factor = math.nan
    if not 0.0 <= factor < math.inf:
        raise ValueError(f"{CONSTANT}X takes a factor X that is a number of at least 0, got {name!r}")
    return factor


def _replay(name: str) -> Replay:
    file, _, run = name.removeprefix(REPLAY).partition("#")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{REPLAY}FILE#RUN takes a file of runs that can be read, got {name!r}: {error}") from None
    found = [line for line in map(_parsed, lines) if not run or line.get("id") == run]
    if run:  # a run that was done again is the last of its name
        found = found[-1:]
    if len(found) != 1:
        ids = ", ".join(sorted({str(line["id"]) for line in map(_parsed, lines) if "id" in line})[:10])
        raise ValueError(f"{REPLAY}FILE#RUN takes the id of a run in {file!r}, got {run!r}; it holds: {ids or 'none'}")
    emotion = found[0].get("emotion") or {}
    factors, decay = emotion.get("factors") or (), emotion.get("decay_factors") or ()
    numbers = [*factors, *decay, emotion.get("floor") or 0.0]
    if not factors or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
        raise ValueError(f"{name!r}: that run has no factors to replay, as its optimizer had no emotion")
    return Replay(name, tuple(map(float, factors)), tuple(map(float, decay)), float(numbers[-1]))


def _parsed(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:  # the last line of a file that is being written
        return {}
    return parsed if isinstance(parsed, dict) else {}
