"""Intervals and tests. What scipy has is scipy's."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval; infinite where there are too few values for one."""

    mean: float
    low: float
    high: float


def relative(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """(arm − reference) / mean of the reference, for each pair of losses."""
    mean = statistics.fmean(reference for _, reference in pairs) if pairs else math.nan
    return [(ours - reference) / abs(mean) if mean else math.nan for ours, reference in pairs]


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one task's paired differences, with Student's interval: seeds are few, and a bootstrap of few values
    is too narrow.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def over_tasks(samples: Sequence[Sequence[float]]) -> Interval:
    """The mean over tasks of the mean over seeds, with the interval of a hierarchical bootstrap.

    In each of 9,999 resamples tasks are drawn with replacement, then paired seeds within each of them, so that the
    interval carries the spread over tasks and speaks of tasks like these. Percentiles of the resampled means.

    Args:
        samples: for each task, one difference a seed. Of one task: as `over_seeds`.
    """
    mean = statistics.fmean(statistics.fmean(values) for values in samples)
    if len(samples) < 2:
        return over_seeds(samples[0])
    drawn, count = np.random.default_rng(0), len(samples)
    means = np.empty((count, RESAMPLES, count))  # task, resample, place in the resample
    for task, values in enumerate(samples):
        seeds = drawn.integers(len(values), size=(RESAMPLES, count, len(values)))
        means[task] = np.asarray(values, dtype=float)[seeds].mean(-1)
    tasks = drawn.integers(count, size=(RESAMPLES, count))
    resampled = np.take_along_axis(means, tasks[None], axis=0)[0].mean(-1)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))


def paired_p(differences: Sequence[float]) -> float | None:
    """The p-value of the paired t-test that the mean difference is 0; None where there are too few seeds."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    if not any(differences):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values: scipy says that digits are lost
        return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: the i-th smallest of m (i from 0) times m − i, not below the one before, at most 1."""
    adjusted: dict[str, float] = {}
    above = 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        above = max(above, min((len(p_values) - i) * p_values[name], 1.0))
        adjusted[name] = above
    return adjusted
