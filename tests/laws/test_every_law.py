"""What holds for every law in the table, whatever it makes of a loss; and the published laws beside the reference."""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, astuple, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emo_hf.laws import LAWS, Decision, Law, law_names, law_options, make_law, v3_1
from emo_hf.laws.law import WINDOW
from tests.reference import laws as reference

GREATEST = sys.float_info.max
BOUNDS = {"v3.0": 1.0, "v3.1": 1.625, "robust": 1.625, "v3.6": 6.45, "v3.9": 3e-3, "settle": 1.0}
"""The greatest coefficient that each law documents; the least is 0."""

any_loss = st.floats(allow_nan=False, allow_infinity=False)
ordinary_loss = st.floats(1e-3, 1e3) | st.sampled_from([0.02, 0.021, 1.0, 1.1, 2.0])
odd_loss = st.sampled_from([math.nan, math.inf, -0.5, 0.0])
EDGES = [0.0, 0.125, 0.25, 0.5, 0.625, 0.75, 1.0]
sigma = st.floats(-1.0, 1.0) | st.sampled_from(
    [sign * edge for sign in (-1, 1) for at in EDGES for edge in (at, math.nextafter(at, 0), math.nextafter(at, 0.5))]
)

each_law = pytest.mark.parametrize("law", LAWS)
each_law_or_none = pytest.mark.parametrize("law", [*LAWS, "none over v3.9", "none over settle"])


def made(law: str) -> Law:
    """A law by its name, or `none over` it."""
    *none, own = law.split()
    return make_law("none" if none else own, own, {})


def felt(law: str, losses: list[float]) -> Law:
    emotion = made(law)
    for loss in losses:
        emotion.feel(loss)
    return emotion


@each_law
@settings(max_examples=60)
@given(losses=st.lists(any_loss, min_size=1, max_size=60))
@example([GREATEST, -GREATEST] * 20)
@example([-GREATEST] * 3 + [GREATEST] * 40)
@example([5e-324, 0.0, -5e-324] * 12)
@example([1.0, *[GREATEST, 1e-300] * 20])
def test_the_coefficient_stays_in_its_documented_bounds_for_any_finite_losses(law: str, losses: list[float]) -> None:
    emotion = made(law)
    for loss in losses:
        decision = emotion.feel(loss)
        view = emotion.view()
        shadow = () if decision.shadow is None else astuple(decision.shadow)
        assert all(map(math.isfinite, (decision.floor, *shadow, view.short, view.long, *view.details.values())))
        assert -1.0 <= decision.scalar <= 1.0
        assert 0.0 <= decision.coefficient <= BOUNDS[law]
        assert 0.0 <= decision.decay_factor <= 1.0
        assert decision.step_size(0.0) == decision.decay_size(0.0) == 0.0


def assert_same_step(decision: Decision, step: reference.Step) -> None:
    said = [decision.scalar, decision.coefficient, decision.decay_factor, decision.floor]
    assert said == pytest.approx([step.sigma, step.factor, step.decay_factor, step.floor], rel=1e-12, abs=1e-12)
    assert (decision.shadow is None) == (step.shadow is None)
    if decision.shadow is not None:
        assert astuple(decision.shadow) == pytest.approx(step.shadow, abs=1e-12)


@pytest.mark.parametrize(
    ("law", "options"),
    [
        *((law, {}) for law in reference.LAWS),
        *((law, {"denominator": by}) for law in ("v3.6", "v3.9") for by in ("long", "quieter")),
        ("v3.6", {"stop_scalar": "sigma"}),
        ("v3.9", {"stopcoef": 5.0}),
    ],
)
@settings(max_examples=40)
@given(losses=st.lists(ordinary_loss | odd_loss | any_loss, min_size=1, max_size=50), calm=st.integers(0, 40))
def test_every_law_says_what_the_naive_formulas_say(
    law: str, options: dict[str, Any], losses: list[float], calm: int
) -> None:
    emotion, naive = LAWS[law](**options), reference.LAWS[law](**options)
    for loss in [*losses, *[0.02] * calm]:
        decision, step = emotion.feel(loss), naive.feel(loss)
        assert_same_step(decision, step)
        assert (emotion.should_stop, decision.stop_begins) == (naive.should_stop, step.stop_begins)
        assert (emotion.short, emotion.long) == pytest.approx((naive.short, naive.long), rel=1e-12)
        if law != "v3.6":  # whose window may hold another scalar
            assert emotion.view().quiet == reference.is_quiet(naive.scalars)


@pytest.mark.parametrize(
    ("decision_at", "say"),
    [(v3_1.decision_at, reference.V31().say), (LAWS["v3.6"]().decision_at, reference.V36().say)],  # type: ignore[attr-defined]
)
@given(sigma)
def test_what_follows_from_a_scalar_is_what_the_tables_say_at_their_edges_too(
    decision_at: Callable[[float], Decision], say: Callable[[float], reference.Step], sigma: float
) -> None:
    assert_same_step(decision_at(sigma), say(sigma))
    assert decision_at(sigma).coefficient == pytest.approx(say(sigma).factor, rel=1e-15)


@pytest.mark.parametrize(
    ("losses", "quiet", "stop", "flat"),
    [
        ([1.0] * (WINDOW - 1), False, False, 0),
        ([1.0] * WINDOW, True, True, 1),
        ([-1.0] * (WINDOW + 4), True, True, 5),
        ([1.0] * (WINDOW + 4) + [100.0] * 2, False, True, 0),
        ([1.0] * (WINDOW - 1) + [3.0], False, False, 0),
        ([2.0 * 0.98**t for t in range(200)], False, False, 0),
        ([2.0 * 0.99999**t for t in range(600)], True, True, 569),
        ([2.0 * 0.9997**t for t in range(600)], True, True, 16),
        ([-1.0 - 0.01 * t for t in range(60)], False, False, 0),
    ],
    ids=["window not full", "window full", "flat for longer, below zero", "quiet, then a leap", "a leap among quiet",
         "a lasting slope", "a fall of nothing", "a gentle fall", "a fall below zero"],
)  # fmt: skip
def test_it_is_quiet_and_may_stop_and_is_flat_when(losses: list[float], quiet: bool, stop: bool, flat: int) -> None:
    view = felt("v3.1", losses).view()
    assert (view.quiet, view.should_stop, view.flat_steps) == (quiet, stop, flat)


def test_the_first_loss_sets_both_averages_though_it_be_zero_and_a_view_is_a_snapshot() -> None:
    emotion = felt("v3.1", [0.0])
    view, state = emotion.view(), emotion.state_dict()
    emotion.feel(2.0)
    assert (view.short, view.long, view.scalar, view.coefficient) == (0.0, 0.0, 0.0, 1.0)
    assert (view, state) == (felt("v3.1", [0.0]).view(), felt("v3.1", [0.0]).state_dict())
    assert (emotion.short, emotion.long) == pytest.approx((0.6, 0.02))
    with pytest.raises(FrozenInstanceError):
        view.short = 0.0  # type: ignore[misc]


def known(law: Law, other: Law) -> dict[str, Any]:
    """All that a law knows, or another one like it, but for what is of the last steps alone."""
    names = (vars(law).keys() | vars(other).keys()) - {"decision", "decisions"}
    values = {name: getattr(law, name) for name in names}
    return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in values.items()}


@each_law_or_none
@settings(max_examples=40)
@given(
    before=st.lists(any_loss | ordinary_loss | odd_loss, max_size=50),
    after=st.lists(any_loss | ordinary_loss | odd_loss, max_size=40),
)
@example(before=[*[1.0, 1.2] * 12, *[9.0, 9.5] * 16, 90.0, 9.0], after=[9.0, 80.0, 1.0] * 9)
def test_a_saved_emotion_goes_on_bit_for_bit_and_its_state_is_plain_numbers_of_one_structure(
    law: str, before: list[float], after: list[float]
) -> None:
    emotion, restored = felt(law, before), made(law)
    for loss in (1.0, 1.5):
        emotion.hear_evaluation(loss)
    state, fresh = emotion.state_dict(), restored.state_dict()
    assert {key: len(value) for key, value in state.items() if isinstance(value, list)} == {
        key: len(value) for key, value in fresh.items() if isinstance(value, list)
    }
    assert all(type(value) in (str, float, int, bool, list) for value in state.values())
    restored.load_state_dict(json.loads(json.dumps(state)))
    assert restored.decision.decay_factor == emotion.decision.decay_factor
    assert known(restored, emotion) == known(emotion, restored)
    for loss in after:
        assert restored.view() == emotion.view()
        assert restored.feel(loss) == emotion.feel(loss)
    assert (restored.view(), restored.state_dict()) == (emotion.view(), emotion.state_dict())


def assert_refused(law: str, state: dict[str, Any], what: str) -> None:
    emotion = felt(law, [2.0, 1.5, math.nan])
    before = emotion.state_dict()
    with pytest.raises(ValueError, match=what):
        emotion.load_state_dict(state)
    assert emotion.state_dict() == before


NO_NUMBER = [None, "x", [None], math.nan, math.inf, 10**400, torch.ones(2)]
NO_SIZE, NO_COUNT = [*NO_NUMBER, -1], [*NO_NUMBER, -1, 0.5]
NEVER_NEGATIVE = {"coefficient", "rate", "variance", "deviation", "height", "credit"}


@each_law
def test_a_state_that_was_cut_short_or_damaged_is_refused_and_changes_nothing(law: str) -> None:
    state = felt(law, [5.0, 4.0]).state_dict()
    for name, value in state.items():
        assert_refused(law, {key: other for key, other in state.items() if key != name}, name)
        bad: list[Any] = NO_SIZE if name in NEVER_NEGATIVE else NO_NUMBER
        if isinstance(value, list):
            bad = [None, "x", [None], [*value, 0.0], ["x"] * len(value), [math.nan] * len(value)]
        elif isinstance(value, bool):
            bad = [None, "x", 2, torch.ones(2)]
        elif isinstance(value, int):
            bad = NO_COUNT
        for damage in bad if name != "law" else ():
            assert_refused(law, state | {name: damage}, f"damaged: {name}")


@pytest.mark.parametrize(("saved", "loading"), [*itertools.pairwise(["none over v3.1", *LAWS]), ("settle", "v3.0")])
def test_a_state_of_another_law_is_refused_with_the_option_that_reads_it(saved: str, loading: str) -> None:
    state = felt(saved, [5.0, 4.0]).state_dict()
    assert_refused(loading, state, f"follows the law '{state['law']}'.*emo_law={state['law']}")


@each_law_or_none
@pytest.mark.parametrize("before", [[], [2.0, 1.0], [1.0] * WINDOW])
def test_a_loss_that_is_not_usable_shows_as_the_neutral_step_and_leaves_no_other_trace(
    law: str, before: list[float]
) -> None:
    for loss in (math.nan, math.inf, -math.inf, None):
        emotion = felt(law, before)
        state, details = emotion.state_dict(), emotion.view().details
        factor = 1.0
        if law == "v3.9":  # which has no other rate than what it has come to
            factor = min(details["ratio"] * max(100.0 ** details["chain"], 0.01) * 1e-4, 3e-3)
        decision = emotion.neutral_step() if loss is None else emotion.feel(loss)
        assert (decision.scalar, decision.coefficient, decision.stop_begins) == (0.0, factor, False)
        assert (emotion.view().scalar, emotion.view().coefficient) == (0.0 if emotion.has_scalar else None, factor)
        skipped = {"skipped": int(loss is not None)}
        assert emotion.state_dict() == state | skipped | {"scalar": 0.0, "coefficient": factor}
        emotion.feel(1.0)
        assert emotion.state_dict() == felt(law, [*before, 1.0]).state_dict() | skipped
        emotion.drop_loss()  # one whose step never came
        assert emotion.skipped == skipped["skipped"] + 1


@each_law
def test_none_takes_the_place_of_every_laws_factors_and_of_nothing_else(law: str) -> None:
    own, none = made(law), made(f"none over {law}")
    assert none.view().coefficient == 1.0  # before the first step too
    signals = 0
    for loss in [*[0.02] * 60, 2.0, 1.5, 1.0, 0.5, math.nan, 0.4, 0.4]:
        decision, expected = none.feel(loss), own.feel(loss)
        assert decision == replace(expected, coefficient=1.0, decay_factor=1.0, floor=0.0, skip=False)
        assert none.view() == replace(own.view(), law="none", coefficient=1.0)
        signals += decision.stop_begins
    assert signals == (law != "settle")


def test_laws_are_made_by_name_with_their_options_and_no_others() -> None:
    assert law_names() == (*LAWS, "none")
    assert law_options().keys() == {option for law in LAWS.values() for option in law.options}
    for name, law in LAWS.items():
        emotion = make_law(name, "v3.1", {})
        assert type(emotion) is law
        assert emotion.label == emotion.view().law == emotion.state_dict()["law"] == name
        with pytest.raises(TypeError, match=f"the law {name} has no option mood"):
            make_law(name, "v3.1", {"mood": 1})
    with pytest.raises(ValueError, match=r"emo_law must be one of v3\.0, v3\.1, .*none, got 'v4'"):
        make_law("v4", "v3.1", {})
    with pytest.raises(ValueError, match=r"option denominator='short' is not acceptable: it takes one of published"):
        make_law("none", "v3.9", {"denominator": "short"})


@each_law
def test_the_zones_of_a_law_lie_side_by_side_within_the_range_of_the_scalar(law: str) -> None:
    zones = sorted(LAWS[law].zones, key=lambda zone: zone.low)
    assert all(-1.0 <= zone.low < zone.high <= 1.0 for zone in zones)
    assert all(one.high <= other.low for one, other in itertools.pairwise(zones))


def test_v39_takes_its_signal_back_and_says_so_once_each_time_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    emotion, silent = LAWS["v3.9"](), LAWS["v3.9"](notify=False)
    losses = [0.02] * 40 + [0.5] * 3 + [0.02] * 60
    with caplog.at_level(logging.WARNING):
        begins = [emotion.feel(loss).stop_begins for loss in losses]
        assert sum(begins) == len(caplog.records) == 2
        assert emotion.should_stop
        assert [silent.feel(loss).stop_begins for loss in losses] == begins
    assert len(caplog.records) == 2
