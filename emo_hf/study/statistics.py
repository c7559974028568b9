"""Intervals, tests, profiles and widths. What scipy has is scipy's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import stats

Name = TypeVar("Name")

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval; without one (infinite) where there is a single value."""

    mean: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        return self.low <= 0.0 <= self.high


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of paired differences and its 95 % percentile bootstrap interval.

    Args:
        values: one difference a seed.
    """
    return mean_of_means_interval([values])


def mean_of_means_interval(samples: Sequence[Sequence[float]]) -> Interval:
    """The mean over tasks of the mean over seeds, seeds drawn anew within each task; 95 % percentile bootstrap.

    Args:
        samples: for each task, one difference a seed.
    """
    arrays = [np.asarray(values, dtype=float) for values in samples]
    mean = float(np.mean([array.mean() for array in arrays]))
    if not math.isfinite(mean) or min(map(len, arrays)) < 2:
        return Interval(mean, -math.inf, math.inf)
    if all(np.ptp(array) == 0.0 for array in arrays):
        return Interval(mean, mean, mean)

    def statistic(*drawn: Any, axis: int = -1) -> Any:
        return np.mean([sample.mean(axis=axis) for sample in drawn], axis=0)

    found = stats.bootstrap(
        arrays, statistic, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(mean, float(found.low), float(found.high))


def paired_p(differences: Sequence[float]) -> float | None:
    """The p-value of the paired t-test that the mean difference is 0; None where there are too few seeds.

    A bootstrap interval of five values is too narrow, and a sign-flip test of five cannot fall below 1/16: so the
    verdict also asks this test.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    if np.ptp(values) == 0.0:
        return 1.0 if values[0] == 0.0 else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal values: scipy says that digits are lost
        return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's adjusted p-values: the i-th smallest of m (i from 0) times m − i, not below the one before, at most 1."""
    adjusted: dict[Name, float] = {}
    above = 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        above = max(above, min((len(p_values) - i) * p_values[name], 1.0))
        adjusted[name] = above
    return adjusted


def profile(times: Mapping[str, Sequence[float]], taus: Sequence[float]) -> dict[str, list[float]]:
    """Performance profiles: for each arm and τ, the share of problems that it solves within τ times the fastest.

    Args:
        times: arm → what each problem took it, infinite where it did not get there; the same problems for all arms.
        taus: the values of τ, from 1.

    Returns:
        Arm → a share for each τ. A problem that no arm solves counts for none.
    """
    table = np.array([times[arm] for arm in times], dtype=float)
    fastest = table.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratios = np.where(np.isfinite(fastest), table / fastest, np.inf)
    return {arm: [float((row <= tau).mean()) for tau in taus] for arm, row in zip(times, ratios, strict=True)}


@dataclass(frozen=True, slots=True)
class Width:
    """A range of learning rates that are good.

    Attributes:
        low, high: its ends, between the rates that were tried where the loss crosses the bound.
        open_low, open_high: whether it goes on beyond the lowest or highest rate that was tried.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)


def good_range(losses: Mapping[float, float], within: float, best: float | None = None) -> Width | None:
    """The rates around the best one whose loss lies within a share of the best loss.

    Args:
        losses: rate → loss at the end; infinite where it diverged.
        within: the share, such as 0.01.
        best: the loss to compare with; None for the lowest of these.

    Returns:
        The range; None if no rate is good enough. Between two rates the loss is taken to be linear in log(rate).
    """
    rates = sorted(losses)
    values = [losses[rate] for rate in rates]
    lowest = min(values)
    reference = lowest if best is None else best
    bound = reference + within * abs(reference)
    if not math.isfinite(lowest) or lowest > bound:
        return None
    first = last = values.index(lowest)
    while first > 0 and values[first - 1] <= bound:
        first -= 1
    while last < len(rates) - 1 and values[last + 1] <= bound:
        last += 1
    low = (
        rates[0] if first == 0 else _crossing(rates[first], values[first], rates[first - 1], values[first - 1], bound)
    )
    at_end = last == len(rates) - 1
    high = rates[-1] if at_end else _crossing(rates[last], values[last], rates[last + 1], values[last + 1], bound)
    return Width(low, high, first == 0, at_end)


def _crossing(rate: float, loss: float, next_rate: float, next_loss: float, bound: float) -> float:
    if not math.isfinite(next_loss):
        return rate
    share = (bound - loss) / (next_loss - loss)
    return math.exp(math.log(rate) + share * (math.log(next_rate) - math.log(rate)))


def steps_to(evaluations: Sequence[Sequence[float | None]], target: float) -> float:
    """The step at which a curve first comes down to a target, linear between evaluations; infinite if it never does.

    Args:
        evaluations: [step, loss] in order; a loss of None is infinite.
        target: the loss to reach.
    """
    before: tuple[float, float] | None = None
    for step, loss in evaluations:
        assert step is not None
        value = math.inf if loss is None else loss
        if value <= target:
            if before is None or not math.isfinite(before[1]):
                return step
            share = (before[1] - target) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = step, value
    return math.inf


def loss_at(evaluations: Sequence[Sequence[float | None]], step: float) -> float:
    """The loss of a curve at a step, linear between evaluations, infinite beside one that diverged."""
    steps = [float(at or 0.0) for at, _ in evaluations]
    losses = [math.inf if loss is None else loss for _, loss in evaluations]
    after = next((i for i, at in enumerate(steps) if at >= step), len(steps) - 1)
    if steps[after] <= step or after == 0:
        return losses[after]
    share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
    low, high = losses[after - 1], losses[after]
    return math.inf if not (math.isfinite(low) and math.isfinite(high)) else low + share * (high - low)
