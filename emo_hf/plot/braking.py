"""Where a law has braked, read from what it has logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emo_hf.laws import LAWS
from emo_hf.laws.metrics import PREFIX

_GRID = 50  # points of a range of σ


def braked(law: str | None, emo: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]] | None:
    """(start, length) of the stretches between log lines in which a law has braked.

    It has where σ is in a range of braking at the line, or where the smallest factor since the line before is one that
    no other range gives.

    Args:
        law: its name.
        emo: log lines with an emotion's metrics.

    Returns:
        None for laws that have no such range, or are not known.
    """
    zones = LAWS[law].zones if law in LAWS else ()
    brakes = [zone for zone in zones if zone.kind == "brake"]
    if law is None or not brakes:
        return None
    lowest = _lowest_without_braking(law)
    found, start = [], 0
    for line in emo:
        step, scalar = int(line["step"]), line.get(PREFIX + "scalar", 0.0)
        factor = line.get(PREFIX + "coefficient_min", lowest)
        # To σ = ±1 itself, which a tanh reaches in floating point.
        if factor < lowest or any(zone.low < scalar <= zone.high or scalar == zone.low == -1.0 for zone in brakes):
            found.append((start, step - start))
        start = step
    return found


def _lowest_without_braking(law: str) -> float:
    """The smallest factor of any range without braking, where all that brakes is below it; else 0.

    Laws whose factor depends on more than σ do not say one for it: of them σ alone is looked at.
    """
    made = LAWS[law]()
    factors: dict[bool, list[float]] = {True: [], False: []}
    for zone in made.zones:
        brakes = zone.kind == "brake"
        for i in range(brakes, _GRID + 1 - brakes):  # where two ranges meet, the law does not brake yet
            factors[brakes].append(made.coefficient_of(zone.low + (zone.high - zone.low) * i / _GRID))
    return min(factors[False]) if max(factors[True]) < min(factors[False]) else 0.0
