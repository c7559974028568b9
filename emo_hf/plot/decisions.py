"""What a law has decided in the course of a run, read from its words: for pictures and the table at the end."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emo_hf.laws.words import SKIPPED

DONE = "done"
_FACTOR = re.compile(r"[×x](\d[\d.e+-]*) →")
_RATE = re.compile(r"(?:rate|→) ×(\d[\d.e+-]*)$")
_LONGEST = 28
_ENDS, _PARTS = 3, 8  # of a sentence with many parts: those at each end, and how many are not too many


@dataclass(frozen=True, slots=True)
class Moment:
    """A decision at a step.

    Attributes:
        step: the step.
        kind: the word that it begins with: started, raised, eased, …
        detail: the factor or the rate that goes with it, empty if there is none.
    """

    step: int
    kind: str
    detail: str = ""

    @property
    def label(self) -> str:
        """A few words for a picture."""
        return f"{self.kind} {self.detail}".rstrip()


def moments(decisions: Sequence[Sequence[Any]], last_step: int | None = None) -> list[Moment]:
    """Decisions as moments, in their order.

    Args:
        decisions: [step, text] each, as a run's state keeps them.
        last_step: of the run. What is decided between two steps is the next one's, which a run may not have.
    """
    return [
        _moment(int(step) if last_step is None else min(int(step), last_step), str(text)) for step, text in decisions
    ]


def _moment(step: int, text: str) -> Moment:
    kind, colon, _ = text.partition(":")
    if not colon or len(kind) > _LONGEST:  # a law of another kind of words
        return Moment(step, text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")
    factor, rate = _FACTOR.search(text), _RATE.search(text)
    if kind in ("raised", "lowered") and factor:
        return Moment(step, kind, f"×{factor[1]}")
    if kind in ("eased", "come back") and rate:
        return Moment(step, kind, f"to ×{rate[1]}")
    return Moment(step, kind, f"at ×{rate[1]}" if kind == "started" and rate else "")


def spikes(found: Sequence[Moment]) -> list[int]:
    """The steps that were left out."""
    return [moment.step for moment in found if moment.kind == SKIPPED]


def turns(found: Sequence[Moment]) -> list[Moment]:
    """All but the steps that were left out."""
    return [moment for moment in found if moment.kind != SKIPPED]


def in_words(found: Sequence[Moment]) -> str:
    """How a run went, in one line: `started at 64 (×1), eased at 201 and 301 (to ×0.1); 2 spikes left out`."""
    parts = []
    for kind, same in itertools.groupby(turns(found), key=lambda moment: moment.kind):
        *earlier, last = same
        steps = ", ".join(f"{moment.step:,}" for moment in earlier)
        detail = f" ({last.detail.removeprefix('at ')})" if last.detail else ""
        parts.append(f"{kind} at {steps}{' and ' if earlier else ''}{last.step:,}{detail}")
    if len(parts) > _PARTS:
        parts[_ENDS:-_ENDS] = [f"{len(parts) - 2 * _ENDS} more"]
    left_out = len(spikes(found))
    counted = [f"{left_out} spike{'s' if left_out > 1 else ''} left out"] if left_out else []
    return "; ".join([", ".join(parts), *counted] if parts else counted)
