"""Intervals: what they cover, and that the spread over tasks is in the interval of a mean over tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from emo_hf.study.statistics import holm, over_seeds, over_tasks, paired_p, relative


def test_differences_are_shares_of_the_mean_of_the_reference_and_their_interval_over_seeds_is_students() -> None:
    assert relative([(1.0, 2.0), (5.0, 4.0)]) == pytest.approx([-1 / 3, 1 / 3])
    assert relative([(-1.0, -2.0)]) == [0.5]  # above, whatever the sign of the loss
    assert math.isnan(relative([(1.0, 0.0)])[0])
    assert relative([]) == []
    values = [0.01, 0.03, -0.02, 0.05, 0.0]
    found = over_seeds(values)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 4, np.mean(values), stats.sem(values)))
    assert over_seeds([0.1]).low == -math.inf


def test_the_interval_over_tasks_carries_their_spread_and_covers_the_true_mean_as_often_as_it_says() -> None:
    apart = over_tasks([[value, value + 0.001, value - 0.001] for value in (-0.09, -0.05, -0.01, 0.03, 0.07, 0.11)])
    assert apart.mean == pytest.approx(0.01)
    # The seeds of each task differ by 0.001 only: without the spread over tasks the interval would be that narrow.
    assert (apart.low < -0.03, apart.high > 0.05) == (True, True)
    assert over_tasks([[0.0] * 5, [0.3]]).mean == pytest.approx(0.15), "every task counts once"
    assert over_tasks([[0.1, 0.2, 0.3]]) == over_seeds([0.1, 0.2, 0.3])
    drawn, covered = np.random.default_rng(1), 0
    for task_means in drawn.normal(0.0, 0.05, (40, 10)):
        found = over_tasks([list(task + drawn.normal(0.0, 0.02, 3)) for task in task_means])
        covered += found.low <= 0.0 <= found.high
    assert 0.8 <= covered / 40 <= 0.99


def test_holm_and_the_paired_test() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert paired_p([0.1, 0.2, 0.15]) == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.15], 0.0).pvalue)
    cases = ([0.25, 0.25], [0.0, 0.0], [0.1], [0.1, math.nan])
    assert [paired_p(values) for values in cases] == [0.0, 1.0, None, None]
