"""Intervals: what they cover, and that the spread over tasks is in the interval of a mean over tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from emo_hf.study.statistics import holm, over_seeds, over_tasks, paired_p, relative


def test_differences_are_shares_of_the_mean_of_the_reference() -> None:
    assert relative([(1.0, 2.0), (5.0, 4.0)]) == pytest.approx([-1 / 3, 1 / 3])
    assert relative([(-1.0, -2.0)]) == [0.5]  # above, whatever the sign of the loss
    assert math.isnan(relative([(1.0, 0.0)])[0])
    assert relative([]) == []


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.01, 0.03, -0.02, 0.05, 0.0]
    found = over_seeds(values)
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.covers_zero
    assert over_seeds([0.1]).low == -math.inf


def test_the_interval_over_tasks_carries_their_spread() -> None:
    alike = over_tasks([[0.01, 0.011, 0.009]] * 6)
    apart = over_tasks([[value, value + 0.001, value - 0.001] for value in (-0.09, -0.05, -0.01, 0.03, 0.07, 0.11)])
    assert [alike.mean, apart.mean] == pytest.approx([0.01, 0.01])
    assert alike.high - alike.low < 0.002
    assert apart.high - apart.low > 0.08
    # The seeds of each task differ by 0.001 only: without the spread over tasks the interval would be that narrow.
    assert apart.covers_zero
    assert not alike.covers_zero


def test_the_interval_over_tasks_covers_the_true_mean_about_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        tasks = drawn.normal(0.0, 0.05, 10)
        covered += over_tasks([list(task + drawn.normal(0.0, 0.02, 3)) for task in tasks]).covers_zero
    assert 0.8 <= covered / 60 <= 0.99


def test_the_mean_over_tasks_counts_every_task_once_however_many_seeds_it_has() -> None:
    assert over_tasks([[0.0] * 5, [0.3]]).mean == pytest.approx(0.15)
    assert over_tasks([[0.1, 0.2, 0.3]]) == over_seeds([0.1, 0.2, 0.3])


def test_holm_and_the_paired_test() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert paired_p([0.1, 0.2, 0.15]) == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.15], 0.0).pvalue)
    assert paired_p([0.1, 0.1]) == 0.0
    assert paired_p([0.0, 0.0]) == 1.0
    assert paired_p([0.1]) is None
    assert paired_p([0.1, math.nan]) is None
