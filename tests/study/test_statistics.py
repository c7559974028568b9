"""Statistics against cases that were worked out by hand."""

from __future__ import annotations

import math

import pytest

from emo_hf.study.statistics import (
    good_range,
    holm,
    loss_at,
    mean_interval,
    mean_of_means_interval,
    paired_p,
    profile,
    steps_to,
)

CURVE = [[0, 2.0], [10, 1.0], [20, None], [30, 0.5]]


def test_holm_multiplies_by_what_is_left_and_never_goes_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_bootstrap_interval_of_two_values_goes_from_one_to_the_other() -> None:
    # Means of two draws are 0, 1/2 and 1 with probabilities 1/4, 1/2, 1/4: more than 2.5 % lie at either end.
    interval = mean_interval([0.0, 1.0])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert interval.covers_zero


def test_an_interval_of_equal_values_is_that_value_and_one_value_has_none() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == mean_interval([0.5, 0.5])
    assert not mean_interval([0.5, 0.5]).covers_zero
    alone = mean_interval([0.5])
    assert (alone.mean, alone.low, alone.high) == (0.5, -math.inf, math.inf)


def test_over_tasks_seeds_are_drawn_within_each_task() -> None:
    # Within a task nothing varies, though the tasks lie far apart.
    interval = mean_of_means_interval([[1.0, 1.0, 1.0], [-1.0, -1.0]])
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_the_paired_test_is_students() -> None:
    # t = 2 / (1/√3) = 3.4641 with 2 degrees of freedom; p = 1 − t/√(t² + 2) = 0.07418
    t = 2 * math.sqrt(3)
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert paired_p([0.0, 0.0]) == 1.0
    assert paired_p([0.1, 0.1]) == 0.0
    assert paired_p([0.1]) is None
    assert paired_p([0.1, math.inf]) is None


def test_a_profile_counts_problems_within_tau_of_the_fastest() -> None:
    times = {"a": [1.0, 4.0, math.inf], "b": [2.0, 2.0, math.inf]}
    found = profile(times, [1.0, 1.9, 2.0, 4.0])
    assert found["a"] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert found["b"] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_the_width_of_the_good_range_is_read_between_the_rates() -> None:
    # Bound 1.05: crossed 5 % of the way down from 1e-2 to 1e-3, and half way up from 1e-2 to 1e-1.
    width = good_range({1e-3: 2.0, 1e-2: 1.0, 1e-1: 1.1}, 0.05)
    assert width is not None
    assert (width.open_low, width.open_high) == (False, False)
    assert math.log10(width.low) == pytest.approx(-2.05)
    assert math.log10(width.high) == pytest.approx(-1.5)
    assert width.decades == pytest.approx(0.55)


def test_a_range_that_goes_on_beyond_the_rates_is_open_and_a_divergence_ends_it_at_the_last_good_rate() -> None:
    width = good_range({1e-3: 1.0, 1e-2: 1.0, 1e-1: math.inf}, 0.05)
    assert width is not None
    assert (width.low, width.high, width.open_low, width.open_high) == (1e-3, 1e-2, True, False)


def test_a_second_good_region_does_not_count_and_no_rate_may_be_good_enough() -> None:
    width = good_range({1e-4: 1.0, 1e-3: 2.0, 1e-2: 0.99, 1e-1: 2.0}, 0.05)
    assert width is not None
    assert width.low > 1e-3
    assert good_range({1e-3: 1.0, 1e-2: 2.0}, 0.05, best=0.9) is None
    assert good_range({1e-3: math.inf}, 0.05) is None


def test_steps_to_a_target_are_read_between_evaluations() -> None:
    assert steps_to(CURVE, 1.5) == 5.0
    assert steps_to(CURVE, 2.5) == 0
    assert steps_to(CURVE, 0.9) == 30  # nothing can be said between a divergence and what follows
    assert steps_to(CURVE, 0.1) == math.inf


def test_a_loss_between_evaluations_is_linear_and_infinite_beside_a_divergence() -> None:
    assert [loss_at(CURVE, step) for step in (0, 5, 10, 15, 30, 99)] == [2.0, 1.5, 1.0, math.inf, 0.5, 0.5]
