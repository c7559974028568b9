"""The law of v3.1: one loss per step in, one decision per step out."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_hf.laws.law import WINDOW
from emo_hf.laws.v3_1 import V3_1, coefficient, decision_at, shadow_mix
from tests.reference.laws import V31, is_quiet, shadow_ratio
from tests.reference.laws import coefficient as reference_coefficient

QUIET = [1.0] * WINDOW
any_loss = st.floats(allow_nan=False, allow_infinity=False)
ordinary_loss = st.floats(1e-3, 1e3)
scalar = st.floats(-1.0, 1.0) | st.sampled_from([s * e for s in (-1, 1) for e in (0.125, 0.25, 0.625, 0.75, 1.0)])


def felt(losses: list[float]) -> V3_1:
    emotion = V3_1()
    for loss in losses:
        emotion.feel(loss)
    return emotion


@settings(max_examples=200)
@given(st.lists(any_loss, min_size=1, max_size=60))
def test_the_scalar_and_the_averages_are_those_of_the_formula(losses: list[float]) -> None:
    emotion, reference = V3_1(), V31()
    for loss in losses:
        expected = reference.feel(loss)
        assert emotion.feel(loss).scalar == pytest.approx(expected.sigma, abs=1e-12)
        view = emotion.view()
        assert view.short == pytest.approx(reference.short, rel=1e-12)
        assert view.long == pytest.approx(reference.long, rel=1e-12)


@settings(max_examples=200)
@given(st.lists(any_loss, min_size=1, max_size=20))
def test_scalar_and_coefficient_stay_in_their_bounds_whatever_the_losses(losses: list[float]) -> None:
    emotion = V3_1()
    for loss in losses:
        decision = emotion.feel(loss)
        assert -1.0 <= decision.scalar <= 1.0
        assert 0.0 <= decision.coefficient <= 1.625


def test_the_first_loss_sets_both_averages_and_leaves_the_scalar_at_zero() -> None:
    view = felt([3.7]).view()
    assert (view.short, view.long, view.scalar, view.coefficient) == (3.7, 3.7, 0.0, 1.0)


def test_a_first_loss_of_zero_counts_as_the_first_loss() -> None:
    view = felt([0.0, 2.0]).view()
    assert view.short == pytest.approx(0.6)
    assert view.long == pytest.approx(0.02)


def test_the_scalar_is_above_zero_while_the_loss_improves_and_below_while_it_worsens() -> None:
    assert felt([2.0, 1.9]).view().scalar > 0.0
    assert felt([2.0, 2.1]).view().scalar < 0.0


@settings(max_examples=100)
@given(st.lists(ordinary_loss, min_size=1, max_size=40), st.floats(1e-1, 1e3))
def test_the_scalar_does_not_depend_on_the_scale_of_positive_losses(losses: list[float], scale: float) -> None:
    one, other = felt(losses), felt([scale * loss for loss in losses])
    assert one.view().scalar == pytest.approx(other.view().scalar, abs=1e-9)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (0.0, 1.0),
        (0.125, 1.0),
        (-0.125, 1.0),
        (math.nextafter(0.125, 1.0), 1.0 + math.nextafter(0.125, 1.0)),
        (math.nextafter(-0.125, -1.0), 1.0 + math.nextafter(-0.125, -1.0)),
        (0.5, 1.5),
        (-0.5, 0.5),
        (0.625, 1.625),
        (-0.625, 0.375),
        (math.nextafter(0.625, 1.0), 1.0 - math.nextafter(0.625, 1.0)),
        (math.nextafter(-0.625, -1.0), 1.0 + math.nextafter(-0.625, -1.0)),
        (1.0, 0.0),
        (-1.0, 0.0),
    ],
)
def test_the_coefficient_at_the_edges_of_its_table(sigma: float, expected: float) -> None:
    assert coefficient(sigma) == expected


@given(scalar)
def test_the_coefficient_follows_the_table_everywhere(sigma: float) -> None:
    assert decision_at(sigma).coefficient == reference_coefficient(sigma)


@given(scalar, st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_the_shadow_mix_does_what_the_published_ratio_does(sigma: float, p: float, shadow: float) -> None:
    c, rho = reference_coefficient(sigma), shadow_ratio(sigma)
    if rho > 0:
        expected = (1 - rho) * p + c * shadow, shadow
    elif rho < 0:
        expected = p, shadow + 0.1 * (p - shadow)
    else:
        expected = p, shadow + 0.1 * c * (p - shadow)
    mix = shadow_mix(sigma, c)
    moved = mix.keep * p + mix.pull * shadow
    assert (moved, shadow + mix.follow * (moved - shadow)) == pytest.approx(expected, abs=1e-12)


def test_weight_decay_is_never_scaled() -> None:
    assert {decision_at(sigma / 16).decay_factor for sigma in range(-16, 17)} == {1.0}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("before", [[], [2.0, 1.5], QUIET])
def test_a_loss_that_is_not_finite_is_counted_and_leaves_no_other_trace(loss: float, before: list[float]) -> None:
    emotion = felt(before)
    state = emotion.state_dict()
    decision = emotion.feel(loss)
    assert (decision.scalar, decision.coefficient) == (0.0, 1.0)
    assert emotion.state_dict() == state | {"skipped": 1, "scalar": 0.0, "coefficient": 1.0}
    emotion.feel(1.2)
    assert emotion.state_dict() == felt([*before, 1.2]).state_dict() | {"skipped": 1}


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_the_view_shows_the_neutral_step_after_a_loss_that_is_not_usable(loss: float | None) -> None:
    emotion = felt([2.0, 1.0])
    assert (emotion.view().scalar, emotion.view().coefficient) != (0.0, 1.0)
    emotion.neutral_step() if loss is None else emotion.feel(loss)
    assert (emotion.view().scalar, emotion.view().coefficient) == (0.0, 1.0)


def test_a_step_that_was_thrown_away_is_counted_and_leaves_no_other_trace() -> None:
    emotion = felt([2.0, 1.5])
    state = emotion.state_dict()
    emotion.drop_loss()
    assert emotion.state_dict() == state | {"skipped": 1}


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([1.0, 1.001, 0.97, 1.06, 1.3]), min_size=25, max_size=80),
    st.lists(st.sampled_from([1.0, 1.0005, 1.1]), max_size=60),
)
def test_quiet_and_self_stop_equal_the_naive_formula_at_every_step(rough: list[float], calm: list[float]) -> None:
    emotion, reference = V3_1(), V31()
    for loss in [1.0] * 20 + rough + calm:
        emotion.feel(loss)
        reference.feel(loss)
        view = emotion.view()
        assert (view.quiet, view.should_stop) == (is_quiet(reference.scalars), reference.should_stop)


def test_self_stop_speaks_when_the_window_is_full_and_not_before() -> None:
    assert not felt(QUIET[:-1]).view().should_stop
    assert felt(QUIET).view().should_stop


def test_quiet_ends_with_the_quiet_but_should_stop_is_never_taken_back() -> None:
    emotion = felt([1.0] * (WINDOW + 4))
    assert emotion.view().quiet
    emotion.feel(100.0)
    emotion.feel(100.0)
    assert (emotion.view().quiet, emotion.view().should_stop) == (False, True)


def test_flat_steps_count_on_while_it_is_quiet_and_begin_again_after_a_jump() -> None:
    emotion = felt([1.0] * (WINDOW + 4))
    assert emotion.view().flat_steps == 5
    emotion.feel(100.0)
    emotion.feel(100.0)
    assert emotion.view().flat_steps == 0


@pytest.mark.parametrize(("fall", "flat"), [(0.0, True), (0.00001, True), (0.0003, False)])
def test_a_loss_that_falls_gently_is_quiet_but_not_flat(fall: float, flat: bool) -> None:
    view = felt([2.0 * (1 - fall) ** t for t in range(600)]).view()
    assert view.quiet
    assert (view.flat_steps > 256) is flat


def test_flat_steps_are_counted_for_losses_below_zero_too() -> None:
    assert felt([-1.0] * (WINDOW + 4)).view().flat_steps == 5
    falling = [-1.0 - 0.01 * t for t in range(300)]
    assert felt(falling).view().flat_steps <= 1


def test_a_single_leap_among_quiet_steps_is_not_quiet() -> None:
    emotion = felt([*QUIET[1:], 3.0])  # the mean size of the scalars is small; their variance is not
    assert not emotion.view().quiet
    assert not emotion.view().should_stop


def test_a_lasting_slope_is_not_quiet() -> None:
    assert not felt([2.0 * 0.98**t for t in range(200)]).view().should_stop


@settings(max_examples=60)
@given(st.lists(any_loss | st.just(math.nan), max_size=50), st.lists(any_loss, max_size=50))
def test_a_saved_emotion_goes_on_as_if_it_had_never_stopped(before: list[float], after: list[float]) -> None:
    emotion, restored = felt(before), V3_1()
    restored.load_state_dict(json.loads(json.dumps(emotion.state_dict())))
    assert restored.view() == emotion.view()
    assert restored.state_dict() == emotion.state_dict()
    for loss in after:
        assert restored.feel(loss) == emotion.feel(loss)
    assert restored.state_dict() == emotion.state_dict()


def test_a_saved_emotion_does_not_move_with_the_one_it_was_taken_from() -> None:
    emotion = felt([2.0, 1.5])
    state = emotion.state_dict()
    emotion.feel(1.0)
    assert state == felt([2.0, 1.5]).state_dict()


NEEDED = [name for name in V3_1().state_dict() if name != "coefficient"]  # which older checkpoints lack


@pytest.mark.parametrize("change", [{"law": "v9"}, {"law": None}, *({name: ...} for name in NEEDED)])
def test_a_state_of_another_law_or_a_truncated_one_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    state = felt([5.0, 4.0]).state_dict() | change
    state = {name: value for name, value in state.items() if value is not ...}
    emotion = felt([2.0, 1.5])
    before = emotion.state_dict()
    with pytest.raises(ValueError, match=next(iter(change))):
        emotion.load_state_dict(state)
    assert emotion.state_dict() == before


@pytest.mark.parametrize("name", ["short", "window", "observations"])
@pytest.mark.parametrize("value", [None, "x", [None]])
def test_a_state_with_a_damaged_value_is_refused_and_changes_nothing(name: str, value: Any) -> None:
    emotion = felt([2.0, 1.5])
    before = emotion.state_dict()
    with pytest.raises(ValueError, match="damaged"):
        emotion.load_state_dict(felt([5.0, 4.0]).state_dict() | {name: value})
    assert emotion.state_dict() == before


def test_the_view_is_a_frozen_snapshot() -> None:
    emotion = felt([2.0, 1.5])
    view = emotion.view()
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.short = 0.0  # type: ignore[misc]
    emotion.feel(1.0)
    assert view == felt([2.0, 1.5]).view()
    assert (view.observations, view.skipped) == (2, 0)
