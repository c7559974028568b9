"""An arm against another on one task: paired differences, their intervals, and what may be said of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emo_hf.study.statistics import Interval, holm, mean_interval, paired_p

SIGNIFICANT = 0.05

BETTER, WORSE, NO_DIFFERENCE, UNKNOWN = "better", "worse", "no difference shown", "too few seeds to say"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm against the reference on one task, paired by seed, as shares of the reference's mean loss.

    Attributes:
        seeds: how many pairs.
        diverged, reference_diverged: in how many of them one of the two ended without a usable loss.
        interval: mean and 95 % bootstrap interval of (arm − reference) / mean of the reference.
        p, adjusted: of the paired t-test, and after Holm over the arms of the task.
        verdict: better or worse only where the interval leaves out 0 and the adjusted p is below 0.05.
    """

    seeds: int
    diverged: int
    reference_diverged: int
    interval: Interval | None
    p: float | None
    adjusted: float | None
    verdict: str


def relative(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """(arm − reference) / mean of the reference, for each pair."""
    if not pairs:
        return []
    mean = statistics.fmean(reference for _, reference in pairs)
    if not math.isfinite(mean) or mean == 0.0:
        return [math.nan for _ in pairs]
    return [(ours - reference) / abs(mean) for ours, reference in pairs]


def differences_of(
    pairs: Mapping[tuple[str, str], Sequence[tuple[float, float]]],
) -> dict[tuple[str, str], Difference]:
    """(arm, reference) → their difference, from (arm's loss, reference's loss) by seed, with Holm over all of them."""
    p_values = {key: paired_p(relative(of_arms)) for key, of_arms in pairs.items()}
    adjusted = holm({key: p for key, p in p_values.items() if p is not None})
    return {key: _difference(pairs[key], p_values[key], adjusted.get(key)) for key in pairs if pairs[key]}


def _difference(pairs: Sequence[tuple[float, float]], p: float | None, adjusted: float | None) -> Difference:
    diverged = sum(not math.isfinite(ours) for ours, _ in pairs)
    reference_diverged = sum(not math.isfinite(reference) for _, reference in pairs)
    if diverged or reference_diverged:
        more = diverged - reference_diverged
        said = WORSE if more > 0 else BETTER if more < 0 else NO_DIFFERENCE
        interval = None
    else:
        interval = mean_interval(relative(pairs))
        if len(pairs) < 2 or adjusted is None:
            said = UNKNOWN
        elif interval.covers_zero or adjusted >= SIGNIFICANT:
            said = NO_DIFFERENCE
        else:
            said = BETTER if interval.mean < 0 else WORSE
    return Difference(
        seeds=len(pairs),
        diverged=diverged,
        reference_diverged=reference_diverged,
        interval=interval,
        p=p,
        adjusted=adjusted,
        verdict=said,
    )
