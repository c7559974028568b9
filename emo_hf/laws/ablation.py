"""Other factors in the place of a law's: what a run gains or loses against them is what its emotion is worth.

none              c = 1
constant:1.3      c = 1.3
replay:FILE#RUN   c of another run, step by step: the same values, and no connection with this run's loss

The law goes on to take in losses, to log and to signal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emo_hf.laws.decision import Decision

NONE = "none"
CONSTANT = "constant:"
REPLAY = "replay:"

ABLATION_NAMES = (CONSTANT + "X", REPLAY + "FILE#RUN", NONE)
"""What `emo_law` takes beside the laws, for messages."""


class Ablation:
    """Leaves a law's decisions as they are.

    Attributes:
        needs_losses: whether a step without a loss is worth a warning.
    """

    needs_losses = True

    def apply(self, decision: Decision, step: int) -> Decision:
        """What a step is told in place of the law's decision.

        Args:
            decision: the law's.
            step: steps with a loss that came before.
        """
        return decision


@dataclass(frozen=True, slots=True)
class Replay(Ablation):
    """Factors from elsewhere, one a step; where the run goes on for longer, the last one holds.

    Attributes:
        factors: the factors on the learning rate.
        decay_factors: the factors on the rate of the weight decay; 1 throughout by default.
        floor: the lowest rate that either may come to.
    """

    factors: tuple[float, ...]
    decay_factors: tuple[float, ...] = (1.0,)
    floor: float = 0.0

    @property
    def needs_losses(self) -> bool:  # type: ignore[override]
        return self.factors != (1.0,)

    def apply(self, decision: Decision, step: int) -> Decision:
        factor, decay = _at(self.factors, step), _at(self.decay_factors, step)
        return replace(decision, coefficient=factor, decay_factor=decay, floor=self.floor, skip=False)


def _at(values: Sequence[float], step: int) -> float:
    return values[min(step, len(values) - 1)]


def read_ablation(name: Any) -> Replay | None:
    """The factors that a name stands for; None if it is the name of none.

    Args:
        name: `none`, `constant:X` with a factor of at least 0, or `replay:FILE#RUN` with a file of JSON lines, as
            `emo-hf compare` writes them, and the id of a run in it. Without `#RUN` the file must hold one run.

    Raises:
        ValueError: saying what is accepted.
    """
    if name == NONE:
        return Replay((1.0,))
    if isinstance(name, str) and name.startswith(CONSTANT):
        return Replay((_factor(name),))
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
    factors, decay = emotion.get("factors") or (), emotion.get("decay_factors") or (1.0,)
    numbers = [*factors, *decay, emotion.get("floor") or 0.0]
    if not factors or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
        raise ValueError(f"{name!r}: that run has no factors to replay, as its optimizer had no emotion")
    return Replay(tuple(map(float, factors)), tuple(map(float, decay)), float(numbers[-1]))


def _parsed(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:  # the last line of a file that is being written
        return {}
    return parsed if isinstance(parsed, dict) else {}
