"""What holds for every law in the table, whatever it makes of a loss."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emo_hf.laws import LAWS, Decision, Law, law_names, law_options, make_law
from emo_hf.laws.ablation import NONE
from emo_hf.laws.law import WINDOW
from tests.reference import laws as reference

GREATEST = sys.float_info.max
BOUNDS = {"v3.0": 1.0, "v3.1": 1.625, "robust": 1.625, "v3.6": 6.45, "v3.9": 3e-3, "settle": 1.0}
"""The greatest coefficient that each law documents; the least is 0."""

any_loss = st.floats(allow_nan=False, allow_infinity=False)
ordinary_loss = st.floats(1e-3, 1e3) | st.sampled_from([0.02, 0.021, 1.0, 1.1, 2.0])
loss_or_none = ordinary_loss | st.sampled_from([math.nan, math.inf, -0.5, 0.0])
each_law = pytest.mark.parametrize("law", LAWS)
LAW_OR_NONE = [*LAWS, *(f"{NONE} over {law}" for law in LAWS)]
each_law_or_none = pytest.mark.parametrize("law", LAW_OR_NONE)


def settings_of_each_law() -> list[Any]:
    """Every law with every choice among words that its options offer."""
    found: list[tuple[str, dict[str, str]]] = []
    for name, law in LAWS.items():
        found.append((name, {}))
        for option, choices in {"denominator": ("long", "quieter"), "stop_scalar": ("sigma",)}.items():
            found += [(name, {option: choice}) for choice in choices if option in law.options]
    return [pytest.param(name, options, id="-".join([name, *options.values()])) for name, options in found]


each_setting = pytest.mark.parametrize(("law", "options"), settings_of_each_law())
each_published_setting = pytest.mark.parametrize(
    ("law", "options"), [setting for setting in settings_of_each_law() if setting.values[0] in reference.LAWS]
)
each_published_law = pytest.mark.parametrize("law", [law for law in LAWS if law in reference.LAWS])


def made(law: str) -> Law:
    """A law by its name, or `none over` it."""
    own = law.split()[-1]
    return make_law(NONE if law != own else own, own, {})


def felt(law: str, losses: list[float]) -> Law:
    emotion = made(law)
    for loss in losses:
        emotion.feel(loss)
    return emotion


def numbers_in(decision: Decision) -> list[float]:
    shadow = [] if decision.shadow is None else list(dataclasses.astuple(decision.shadow))
    return [decision.scalar, decision.coefficient, decision.decay_factor, decision.floor, *shadow]


@each_setting
@settings(max_examples=100)
@given(losses=st.lists(any_loss, min_size=1, max_size=60))
@example([GREATEST] * 40)
@example([GREATEST, -GREATEST] * 20)
@example([-GREATEST] * 3 + [GREATEST] * 40)
@example([5e-324, 0.0, -5e-324] * 12)
@example([1.0, *[GREATEST, 1e-300] * 20])
def test_the_coefficient_stays_in_its_documented_bounds_for_any_finite_losses(
    law: str, options: dict[str, Any], losses: list[float]
) -> None:
    emotion = LAWS[law](**options)
    for loss in losses:
        decision = emotion.feel(loss)
        view = emotion.view()
        assert all(map(math.isfinite, numbers_in(decision)))
        assert all(map(math.isfinite, [view.short, view.long, *view.details.values()]))
        assert -1.0 <= decision.scalar <= 1.0
        assert 0.0 <= decision.coefficient <= BOUNDS.get(law, math.inf)
        assert 0.0 <= decision.decay_factor <= 1.0
        assert decision.step_size(0.0) == decision.decay_size(0.0) == 0.0


@each_published_setting
@settings(max_examples=60)
@given(losses=st.lists(loss_or_none, min_size=1, max_size=60), calm=st.integers(0, 40))
def test_every_law_says_what_the_naive_formulas_say(
    law: str, options: dict[str, Any], losses: list[float], calm: int
) -> None:
    emotion, naive = LAWS[law](**options), reference.LAWS[law](**options)
    for loss in [*losses, *[0.02] * calm]:
        decision, step = emotion.feel(loss), naive.feel(loss)
        said = [decision.scalar, decision.coefficient, decision.decay_factor, decision.floor]
        assert said == pytest.approx([step.sigma, step.factor, step.decay_factor, step.floor], rel=1e-12, abs=1e-12)
        assert (emotion.should_stop, decision.stop_begins) == (naive.should_stop, step.stop_begins)
        assert (emotion.short, emotion.long) == pytest.approx((naive.short, naive.long), rel=1e-12)


@each_published_law
@settings(max_examples=60)
@given(losses=st.lists(loss_or_none, min_size=1, max_size=8), p=st.floats(-3.0, 3.0), shadow=st.floats(-3.0, 3.0))
def test_the_shadow_mix_of_every_law_does_what_its_published_ratio_does(
    law: str, losses: list[float], p: float, shadow: float
) -> None:
    emotion, naive = LAWS[law](), reference.LAWS[law]()
    for loss in losses:
        decision, step = emotion.feel(loss), naive.feel(loss)
    mix: Any = decision.shadow
    if mix is None:
        assert step.shadow is reference.no_shadow
        return
    moved = mix.keep * p + mix.pull * shadow
    expected: Any = step.shadow
    assert (moved, shadow + mix.follow * (moved - shadow)) == pytest.approx(expected(p, shadow), abs=1e-12)


@each_law_or_none
@settings(max_examples=60)
@given(
    before=st.lists(any_loss | ordinary_loss | st.just(math.nan), max_size=50),
    after=st.lists(any_loss | ordinary_loss | st.just(math.inf), max_size=40),
)
def test_a_saved_emotion_goes_on_bit_for_bit_as_if_it_had_never_stopped(
    law: str, before: list[float], after: list[float]
) -> None:
    emotion, restored = felt(law, before), made(law)
    restored.load_state_dict(json.loads(json.dumps(emotion.state_dict())))
    assert restored.view() == emotion.view()
    assert restored.state_dict() == emotion.state_dict()
    for loss in after:
        assert restored.feel(loss) == emotion.feel(loss)
        assert restored.view() == emotion.view()
    assert restored.state_dict() == emotion.state_dict()


@each_law_or_none
def test_a_state_is_plain_numbers_of_one_structure_from_the_first_step_on(law: str) -> None:
    states = [felt(law, [2.0] * count).state_dict() for count in (0, 1, 40)]
    for state in states:
        assert state.keys() == states[0].keys()
        assert len(state["window"]) == WINDOW
        assert all(type(value) in (str, float, int, bool, list, dict) for value in state.values())
    states[-1]["window"].clear()
    assert len(states[1]["window"]) == WINDOW


def needed(law: str) -> list[str]:
    """What a state cannot do without."""
    return list(LAWS[law]().state_dict())


@pytest.mark.parametrize(("law", "name"), [(law, name) for law in LAWS for name in needed(law)])
def test_a_state_that_was_cut_short_is_refused_and_changes_nothing(law: str, name: str) -> None:
    state = felt(law, [5.0, 4.0]).state_dict()
    del state[name]
    assert_refused(law, state, name)


DAMAGE = [
    ("short", [None, "x", [None], math.nan, math.inf, 10**400]),
    ("long", [None, "x", math.nan]),
    ("scalar", [None, "x", math.nan]),
    ("coefficient", ["x", [1.0], math.nan]),
    ("should_stop", [None, "x", 2]),
    ("quiet", [None, "x"]),
    ("observations", [None, "x", [None], math.nan, math.inf, -1]),
    ("skipped", [None, "x", math.inf, -1]),
    ("flat_steps", [None, "x", math.inf]),
    ("flat_since", [None, math.inf]),
    ("window", [None, "x", [None], [0.0] * (WINDOW + 1), ["x"] * WINDOW, [math.nan] * WINDOW]),
]


def damaged_states() -> list[Any]:
    """Every law with every kind of damage to every number that it keeps."""
    found = [(law, name, value) for law in LAWS for name, values in DAMAGE for value in values]
    found += [(law, name, value) for law in LAWS for name in LAWS[law].numbers for value in (None, "x", math.nan)]
    return [pytest.param(*one, id=f"{one[0]}-{one[1]}-{index}") for index, one in enumerate(found)]


@pytest.mark.parametrize(("law", "name", "value"), damaged_states())
def test_a_state_with_a_damaged_value_is_refused_and_changes_nothing(law: str, name: str, value: Any) -> None:
    assert_refused(law, felt(law, [5.0, 4.0]).state_dict() | {name: value}, "damaged")


@pytest.mark.parametrize(("saved", "loading"), [(a, b) for a in LAW_OR_NONE for b in LAWS if a != b])
def test_a_state_of_another_law_is_refused_with_the_option_that_reads_it(saved: str, loading: str) -> None:
    state = felt(saved, [5.0, 4.0]).state_dict()
    assert_refused(loading, state, f"follows the law '{state['law']}'.*emo_law={state['law']}")


def assert_refused(law: str, state: dict[str, Any], what: str) -> None:
    emotion = felt(law, [2.0, 1.5, math.nan])
    before = emotion.state_dict()
    with pytest.raises(ValueError, match=what):
        emotion.load_state_dict(state)
    assert emotion.state_dict() == before


@each_law_or_none
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("before", [[], [2.0, 1.0], [1.0] * WINDOW, [0.02] * 40])
def test_a_loss_that_is_not_usable_shows_as_the_neutral_step_and_leaves_no_other_trace(
    law: str, loss: float | None, before: list[float]
) -> None:
    emotion = felt(law, before)
    state, factor = emotion.state_dict(), neutral_factor(emotion)
    decision = emotion.neutral_step() if loss is None else emotion.feel(loss)
    assert (decision.scalar, decision.coefficient, decision.stop_begins) == (0.0, factor, False)
    assert (emotion.view().scalar, emotion.view().coefficient) == (0.0 if emotion.has_scalar else None, factor)
    skipped = {"skipped": state["skipped"] + (loss is not None)}
    log = {key: value for key, value in emotion.state_dict().items() if key == "log"}  # settle notes what it left out
    assert emotion.state_dict() == state | skipped | {"scalar": 0.0, "coefficient": factor} | log
    emotion.feel(1.2)
    log = {key: value for key, value in emotion.state_dict().items() if key == "log"}
    later = felt(law, [*before, 1.2]).state_dict()
    skipped = {"skipped": later["skipped"] + (loss is not None)}
    assert emotion.state_dict() == later | skipped | log


def neutral_factor(emotion: Law) -> float:
    """1, or what v3.9 has come to: it has no other rate."""
    if emotion.label != "v3.9":
        return 1.0
    ratio, chain = emotion.view().details["ratio"], emotion.view().details["chain"]
    return min(ratio * max(100.0**chain, 0.01) * 1e-4, 3e-3)


@each_law
@settings(max_examples=40)
@given(losses=st.lists(loss_or_none | any_loss, min_size=1, max_size=50))
def test_none_feels_and_signals_as_the_law_does_and_leaves_the_rate_alone(law: str, losses: list[float]) -> None:
    own, none = made(law), made(f"none over {law}")
    for loss in losses:
        expected = own.feel(loss)
        decision = none.feel(loss)
        assert (decision.coefficient, decision.decay_factor, decision.floor) == (1.0, 1.0, 0.0)
        assert (decision.step_size(0.02), decision.decay_size(0.02)) == (0.02, 0.02)
        assert (decision.scalar, decision.stop_begins) == (expected.scalar, expected.stop_begins)
        assert none.view() == dataclasses.replace(own.view(), law="none", coefficient=1.0)


def test_none_begins_with_a_coefficient_of_one_whatever_the_law() -> None:
    assert {made(f"none over {law}").view().coefficient for law in LAWS} == {1.0}


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
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert [silent.feel(loss).stop_begins for loss in losses] == begins
    assert caplog.records == []


def test_v39_looks_at_an_absolute_loss() -> None:
    assert felt("v3.9", [0.039] * 60).should_stop
    assert not felt("v3.9", [0.041] * 60).should_stop
    lenient = LAWS["v3.9"](stopcoef=2.0)
    assert [lenient.feel(1.5).stop_begins for _ in range(60)].index(True) == 34  # step 35, the earliest there is
