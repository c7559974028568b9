"""What the law `settle` decides on losses that are easy to understand, and what it leaves alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_hf.laws.decision import Decision
from emo_hf.laws.settle import DECISIONS, EASED, Settle
from emo_hf.laws.settle_guard import Guard
from emo_hf.laws.settle_history import BLOCKS, History
from emo_hf.laws.settle_start import HIGHEST, LOWEST

Curve = Callable[[int, random.Random], float]
any_loss = st.floats() | st.floats(-10.0, 10.0)


def falling(t: float, steps: float = 150.0) -> float:
    return 0.5 + 2.0 * math.exp(-t / steps)


def felt(curve: Curve, steps: int, seed: int = 0, stops: bool = True, **options: Any) -> Settle:
    """A law that has heard a curve, until it is done or for so many steps."""
    law, noise = Settle(**options), random.Random(seed)
    for t in range(steps):
        law.feel(curve(t, noise))
        if stops and law.should_stop:
            break
    return law


def words(law: Settle) -> list[str]:
    return [text.split(":")[0] for _, text in law.decisions]


def step_of(law: Settle, word: str) -> int:
    return next(step for step, text in law.decisions if text.startswith(word))


seeds = pytest.mark.parametrize("seed", range(4))


@seeds
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_a_run_that_has_converged_is_eased_and_then_done_with_a_third_of_a_long_budget_saved(
    seed: int, noise: float
) -> None:
    law = felt(lambda t, r: falling(t) + r.gauss(0.0, noise), 6000, seed)
    assert law.should_stop
    assert 600 < law.observations < 4000  # within 0.01 of the end after 800
    assert "easing" in words(law)
    assert words(law)[-1] == "done"
    assert law.decision.coefficient < 0.3 * law.peak <= 0.6
    assert not {"lowered", "come back", "skipped"} & set(words(law))


@seeds
def test_a_loss_that_falls_for_long_along_a_power_law_is_neither_eased_hard_nor_stopped(seed: int) -> None:
    law = felt(lambda t, r: 1.7 + 3.0 * (t + 1) ** -0.3 + r.gauss(0.0, 0.05), 6000, seed)
    assert not law.should_stop
    assert law.decision.coefficient > 0.1


@seeds
def test_a_slow_start_is_raised_and_neither_eased_nor_stopped_before_it_has_begun(seed: int) -> None:
    law = felt(lambda t, r: 2.0 - 1.5 / (1.0 + math.exp(-(t - 800) / 60)) + r.gauss(0.0, 0.1), 900, seed)
    assert "raised" in words(law)
    assert not {"easing", "done", "lowered"} & set(words(law))
    assert law.decision.coefficient > 1.0


@seeds
def test_a_start_that_is_switched_off_leaves_the_rate_alone_while_nothing_moves(seed: int) -> None:
    law = felt(lambda _, r: 2.0 + r.gauss(0.0, 0.1), 1500, seed, start=False)
    assert law.decision.coefficient == 1.0
    assert not law.decisions


def test_the_rate_is_raised_where_nothing_moves_only_up_to_its_bound() -> None:
    law = felt(lambda _, r: 2.0 + r.gauss(0.0, 0.1), 6000, stops=False)
    assert law.peak == HIGHEST


@seeds
def test_nothing_is_raised_once_the_curve_bends(seed: int) -> None:
    law = felt(lambda t, r: falling(t, 40.0) + r.gauss(0.0, 0.1), 3000, seed, stops=False)
    assert law.peak == 1.0


@seeds
def test_a_warm_up_of_the_learning_rate_ends_without_easing_or_stop(seed: int) -> None:
    # The loss falls as the integral of a rate that grows for 200 steps.
    done = [min(t, 200) ** 2 / 400 + max(t - 200, 0) for t in range(400)]
    law = felt(lambda t, r: falling(done[t], 200.0) + r.gauss(0.0, 0.05), 400, seed)
    assert not {"easing", "done", "lowered"} & set(words(law))
    assert law.peak <= 6.0


@pytest.mark.parametrize("peak", [3.0, 50.0, 1e6])
def test_a_loss_that_rises_above_its_beginning_lowers_the_rate_and_forbids_raises(peak: float) -> None:
    law = felt(lambda t, r: 2.0 + peak * min(t / 60, 1.0) + r.gauss(0.0, 0.05), 600, stops=False)
    assert words(law).count("lowered") >= 2
    assert "raised" not in words(law)
    assert LOWEST * EASED / 3 <= law.decision.coefficient < 0.2


@seeds
def test_twenty_spikes_are_skipped_and_leave_no_trace_in_the_rate(seed: int) -> None:
    def curve(t: int, r: random.Random) -> float:
        return falling(t) + r.gauss(0.0, 0.05)

    law, clean, noise, skipped = Settle(), Settle(), random.Random(seed), []
    for t in range(2000):
        loss = curve(t, noise)
        if t % 97 == 96:
            assert law.feel(loss + 30.0).skip
            skipped.append(t)
        assert not law.feel(loss).skip
        clean.feel(loss)
    assert len(skipped) == law.spikes == 20
    assert law.decision == clean.decision
    assert (law.short, law.long) == (clean.short, clean.long)


@pytest.mark.parametrize(
    "draw",
    [
        lambda r: r.gauss(1.0, 0.3),
        lambda r: r.expovariate(1.0),
        lambda r: r.lognormvariate(0.0, 1.0),
        lambda r: float(r.random() < 0.05),
    ],
    ids=["gaussian", "exponential", "lognormal", "rare ones"],
)
def test_fewer_than_one_clean_step_in_a_thousand_is_skipped(draw: Callable[[random.Random], float]) -> None:
    law = felt(lambda _, r: draw(r), 20_000, stops=False)
    assert law.spikes < 20


@pytest.mark.parametrize("height", [3.0, 100.0])
def test_a_level_that_stays_is_accepted_after_three_steps(height: float) -> None:
    law, noise = felt(lambda t, r: falling(t) + r.gauss(0.0, 0.05), 1200, stops=False), random.Random(1)
    assert [law.feel(height + noise.gauss(0.0, 0.05)).skip for _ in range(50)] == [True] * 3 + [False] * 47


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_step_of_a_loss_that_is_not_finite_is_skipped_unless_the_guard_is_off(bad: float) -> None:
    assert Settle().feel(bad) == Decision(skip=True)
    assert Settle(guard=False).feel(bad) == Decision()
    assert not Settle(guard=False).feel(1e30).skip


@seeds
def test_other_data_bring_the_rate_back_to_where_it_was_eased_from(seed: int) -> None:
    law = felt(
        lambda t, r: (falling(t, 100) if t < 1500 else falling(t - 1500, 100)) + r.gauss(0.0, 0.05),
        1650, seed, stops=False,
    )  # fmt: skip
    assert 1500 < step_of(law, "come back") < 1620
    assert law.decision.coefficient > 0.5
    assert not law.should_stop  # a signal that had been given is taken back


@seeds
def test_nothing_comes_back_where_the_data_stay_the_same(seed: int) -> None:
    law = felt(lambda t, r: falling(t) + r.expovariate(4.0), 8000, seed, stops=False)
    assert "come back" not in words(law)


@seeds
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_loss_changes_nothing(seed: int, scale: float) -> None:
    curve = [falling(t) for t in range(2500)]
    law = felt(lambda t, r: scale * (curve[t] + r.gauss(0.0, 0.05)), 2500, seed)
    plain = felt(lambda t, r: curve[t] + r.gauss(0.0, 0.05), 2500, seed)
    assert [step for step, _ in law.decisions] == [step for step, _ in plain.decisions]
    assert law.decision.coefficient == pytest.approx(plain.decision.coefficient, rel=1e-6)


@seeds
@pytest.mark.parametrize("offset", [-3.0, -0.5])
def test_losses_around_and_below_zero_are_eased_and_done_too(seed: int, offset: float) -> None:
    law = felt(lambda t, r: offset + falling(t) + r.gauss(0.0, 0.05), 8000, seed)
    assert law.should_stop
    assert law.observations > 600


def test_a_known_horizon_is_annealed_to_at_its_end_at_the_latest() -> None:
    law = Settle()
    law.know_horizon(1000)
    noise = random.Random(0)
    losses = [1.0 + 3.0 * (t + 1) ** -0.3 + noise.gauss(0.0, 0.05) for t in range(1000)]
    factors = [law.feel(loss).coefficient for loss in losses]
    assert 0.0 < factors[-1] < 0.01
    assert all(after <= before for before, after in pairwise(factors[600:]))
    law.know_horizon(None)
    assert law.feel(1.3).coefficient > 0.1


def test_with_ease_off_the_rate_stays_and_the_end_is_still_told() -> None:
    law = felt(lambda t, r: falling(t) + r.gauss(0.0, 0.05), 8000, ease=False)
    assert law.should_stop
    assert law.decision.coefficient == 1.0


def test_with_stop_off_nothing_is_ever_called_done() -> None:
    law = felt(lambda t, r: falling(t) + r.gauss(0.0, 0.05), 8000, stop=False)
    law.hear_evaluation(1.0)
    for _ in range(8):
        law.hear_evaluation(2.0)
    assert not law.should_stop
    assert law.decision.coefficient == EASED


def test_evaluations_that_get_worse_ease_at_once_and_the_third_is_the_end() -> None:
    law, noise = Settle(), random.Random(0)
    for t in range(900):
        law.feel(falling(t, 600.0) + noise.gauss(0.0, 0.05))
        if t % 100 == 99:
            law.hear_evaluation(1.0 + abs(t - 400) / 1000)  # best at step 400
        if law.should_stop:
            break
    assert words(law).count("eased") == 3
    assert law.steps in range(700, 901)
    assert all(step % 100 == 0 for step, text in law.decisions if text.startswith(("eased: an eval", "done: eval")))


def test_a_loss_that_is_flat_is_not_done_while_evaluations_improve() -> None:
    law, noise = Settle(), random.Random(0)
    for t in range(5000):
        law.feel(falling(t) + noise.gauss(0.0, 0.05))
        if t % 50 == 49:
            law.hear_evaluation(2.0 - t / 1e4)
    assert not law.should_stop


@settings(max_examples=60, deadline=None)
@given(
    st.lists(any_loss, max_size=150), st.lists(any_loss, max_size=60), st.sampled_from([None, 100]), st.integers(1, 30)
)
def test_a_saved_law_goes_on_bit_for_bit(
    before: list[float], after: list[float], horizon: int | None, often: int
) -> None:
    law, restored = Settle(), Settle()
    law.know_horizon(horizon)
    for t, loss in enumerate(before):
        law.feel(loss)
        if t % often == 0:
            law.hear_evaluation(loss)
    restored.load_state_dict(json.loads(json.dumps(law.state_dict())))
    for t, loss in enumerate(after):
        assert restored.feel(loss) == law.feel(loss)
        if t % often == 0:
            law.hear_evaluation(loss)
            restored.hear_evaluation(loss)
    assert restored.state_dict() == law.state_dict()
    assert restored.view() == law.view()
    assert restored.decisions == law.decisions


@pytest.mark.parametrize("cut", [10, 70, 900, 1450, 1520, 2200])
def test_a_run_that_is_resumed_at_any_time_decides_what_it_would_have_decided(cut: int) -> None:
    def loss_at(t: int) -> float:
        return falling(t % 1500, 100) + random.Random(t).gauss(0.0, 0.05)

    law, resumed = Settle(), Settle()
    for t in range(3000):
        law.feel(loss_at(t))
        if t == cut:
            resumed.load_state_dict(json.loads(json.dumps(law.state_dict())))
        elif t > cut:
            resumed.feel(loss_at(t))
    assert resumed.state_dict() == law.state_dict()


def test_the_state_keeps_its_structure_and_its_size() -> None:
    fresh, old = Settle(), felt(lambda t, r: falling(t % 900, 100) + r.gauss(0.0, 0.05), 9000, stops=False)
    assert len(old.decisions) <= DECISIONS
    for state in (fresh.state_dict(), old.state_dict()):
        assert state.keys() == fresh.state_dict().keys()
        assert len(state["history_means"]) == BLOCKS
        assert len(state["decision_steps"]) == len(state["decision_texts"]) == DECISIONS
    assert [type(value) for value in fresh.state_dict().values()] == [
        type(value) for value in old.state_dict().values()
    ]


@pytest.mark.parametrize(
    "damage",
    [
        {"rate": math.nan},
        {"history_means": [1.0]},
        {"watch_seen": -7},
        {"beginning_known": 3},
        {"history_variance": -1.0},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict[str, Any]) -> None:
    law = felt(lambda t, r: falling(t) + r.gauss(0.0, 0.05), 300)
    state, before = law.state_dict() | damage, law.state_dict()
    with pytest.raises(ValueError, match="damaged"):
        law.load_state_dict(state)
    assert law.state_dict() == before
    del before["gained"]
    with pytest.raises(ValueError, match="gained"):
        Settle().load_state_dict(before)


@settings(max_examples=200, deadline=None)
@given(st.lists(any_loss, min_size=1, max_size=300), st.floats(-1e300, 1e300), st.integers(0, 400))
def test_no_losses_make_a_coefficient_that_is_not_a_number_or_out_of_bounds(
    losses: list[float], same: float, times: int
) -> None:
    law = Settle()
    for loss in [*losses, *[same] * times, *losses]:
        decision = law.feel(loss)
        assert LOWEST * EASED / 3.0 <= decision.coefficient <= HIGHEST
        assert decision.decay_factor == decision.coefficient
        assert -1.0 <= decision.scalar <= 1.0
        assert all(map(math.isfinite, law.view().details.values()))


def test_a_history_holds_the_means_of_equal_blocks_of_the_whole_run() -> None:
    history = History()
    for loss in range(5000):
        history.add(float(loss))
    assert BLOCKS / 2 <= len(history.means) < BLOCKS
    assert history.means[0] == (history.block - 1) / 2
    trend = history.trend(10)
    assert trend.fall == pytest.approx(-10 * history.block)
    assert trend.error == pytest.approx(0.0, abs=1e-9)


def test_the_guard_lets_one_in_ten_through_at_most_in_the_long_run() -> None:
    guard = Guard()
    skipped = sum(guard.is_spike(100.0**t if t > 50 and t % 3 == 0 and t < 150 else 1.0) for t in range(1000))
    assert skipped <= 13


def test_the_average_of_the_weights_lags_by_a_ninth_of_the_age_at_any_age() -> None:
    law, average, samples = Settle(average_weights=True), 0.0, 0
    assert Settle().decision.average is None
    for t in range(1, 8193):
        law.feel(1.0 + 1.0 / t)
        share = law.decision.average
        assert share is not None
        assert 0.0 <= share <= 1.0
        average, samples = average + share * (t - average), samples + (share > 0.0)
        if t in (64, 600, 2048, 8192):  # weights that stand for their step
            assert average == pytest.approx(8 * t / 9, rel=0.03)
    assert 1000 < samples < 2000  # not every step of a long run


def test_a_state_from_before_there_were_averages_of_weights_is_read() -> None:
    before = felt(lambda t, _: falling(t), 300)
    state = before.state_dict()
    del state["averaged_from"]
    after = Settle()
    after.load_state_dict(state)
    assert after.state_dict() == before.state_dict()


def test_the_average_begins_anew_where_the_rate_is_lowered_or_the_data_change() -> None:
    law = Settle(average_weights=True, ease=False)
    for t in range(400):
        law.feel(1.0 if t < 20 else 5.0 + 0.01 * (t % 3))
        if law.rate < 1.0:
            break
    assert law.rate < 1.0
    assert law.decision.average == 1.0


def test_with_an_average_of_the_weights_nothing_is_annealed_towards_a_horizon() -> None:
    with_one, without = Settle(average_weights=True, ease=True), Settle()
    for law in (with_one, without):
        law.know_horizon(400)
        for t in range(399):
            law.feel(falling(t))
    assert without.decision.coefficient < 0.02
    assert with_one.decision.coefficient > 0.1
