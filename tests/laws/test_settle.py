"""What `settle` leaves out, when it lowers the rate, and when it says that training may end."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable

import pytest

from emo_hf.laws import Decision, Note
from emo_hf.laws.guard import Guard
from emo_hf.laws.settle import NOTES, Settle
from emo_hf.laws.words import text_of

SEEDS = range(12)


def falling(seed: int, steps: int, noise: float = 0.2) -> list[float]:
    """A loss that falls from about 2.5 to about 1, with noise in proportion."""
    rng = random.Random(seed)
    return [(1.0 + 1.5 / (1.0 + step / 50)) * math.exp(noise * rng.gauss(0, 1)) for step in range(steps)]


def fed(losses: Iterable[float], **options: object) -> tuple[Settle, list[Decision]]:
    law = Settle(**options)
    return law, [law.feel(loss) for loss in losses]


def kinds(decisions: Iterable[Decision]) -> list[tuple[int, str]]:
    return [(decision.note.step, decision.note.kind) for decision in decisions if decision.note is not None]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noise", [0.02, 0.2, 0.6])
def test_an_ordinary_run_is_left_alone(seed: int, noise: float) -> None:
    law, decisions = fed(falling(seed, 600, noise), guard=False)
    assert [decision for decision in decisions if decision != Decision()] == []
    assert law.decisions == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_spike_is_left_out_and_leaves_no_trace(seed: int) -> None:
    losses = falling(seed, 200)
    law, _ = fed(losses[:150])
    short, steps = law.short, law.steps
    decision = law.feel(60.0)
    assert decision.skip
    assert law.short == short
    assert decision.note == Note(steps + 1, "skipped", 1.0, f"a loss of 60 where {law.watch.center:.6g} is usual")
    assert law.skipped == 1
    assert not law.feel(losses[150]).skip


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_left_out_from_the_first_step_on(loss: float) -> None:
    law, (decision,) = fed([loss])
    assert decision.skip
    assert law.view().skipped == 1
    _, (unguarded,) = fed([loss], guard=False)
    assert not unguarded.skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
def test_rare_hard_data_are_taken_from_their_second_batch_on(seed: int, share: float) -> None:
    rng = random.Random(1000 + seed)
    hard, left_out = 0, 0
    law = Settle()
    for step, loss in enumerate(falling(seed, 3000, 0.1)):
        is_hard = step > 32 and rng.random() < share
        decision = law.feel(loss * rng.uniform(4.0, 6.0) if is_hard else loss)
        hard += is_hard
        left_out += decision.skip
        assert is_hard or not decision.skip
    assert hard > 10
    assert left_out <= 3


def test_a_level_that_has_changed_is_learned_anew() -> None:
    law, decisions = fed([1.0 + 0.01 * (step % 3) for step in range(100)] + [50.0 + step % 3 for step in range(50)])
    assert sum(decision.skip for decision in decisions) <= 3
    assert law.watch.center == pytest.approx(51.0, abs=1.0)


def test_gradients_that_are_not_finite_are_refused_for_the_step_whose_loss_was_heard() -> None:
    law, _ = fed([2.0, 1.9])
    assert law.guards_gradients
    assert law.refuse_gradients().note == Note(2, "skipped", 1.0, "gradients that are not finite")
    assert not Settle(guard=False).guards_gradients


def diverging(seed: int, top: float, from_step: int = 2) -> list[float]:
    rng = random.Random(seed)
    return [2.0 + rng.gauss(0, 0.1) + (top if step >= from_step else 0.0) for step in range(200)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("top", "from_step"), [(1.5, 4), (30.0, 2), (8.0, 40)])
def test_a_loss_far_above_its_beginning_lowers_the_rate(seed: int, top: float, from_step: int) -> None:
    _, decisions = fed(diverging(seed, top, from_step), guard=False)
    (first, kind), *_ = kinds(decisions)
    assert kind == "lowered"
    assert first <= from_step + 60
    lowered = decisions[first - 1]
    assert lowered.coefficient == lowered.decay_factor == pytest.approx(1 / 3)
    assert lowered.note is not None
    assert lowered.note.factor == lowered.coefficient


def test_it_is_lowered_again_only_where_the_loss_stays_up_and_never_without_end() -> None:
    _, stays = fed([2.0, 2.1, 1.9, 2.0] + [9.0 + 0.1 * (step % 2) for step in range(2000)], guard=False)
    steps = [step for step, _ in kinds(stays)]
    assert len(steps) == 6
    assert all(later - earlier >= 32 for earlier, later in itertools.pairwise(steps))
    assert stays[-1].coefficient >= 1e-3
    _, falls = fed([2.0, 2.1, 1.9, 2.0] + [9.0 * 0.97**step + 0.1 * (step % 2) for step in range(300)], guard=False)
    assert len(kinds(falls)) == 1


def test_nothing_is_lowered_where_the_option_is_off() -> None:
    _, decisions = fed(diverging(0, 30.0), guard=False, lower=False)
    assert kinds(decisions) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loss_that_scatters_around_zero_changes_no_rate_and_is_complained_of_once(seed: int) -> None:
    rng = random.Random(seed)
    law, decisions = fed((rng.gauss(0, 1) * (1 + step / 200) for step in range(2000)), guard=False)
    assert {decision.coefficient for decision in decisions} == {1.0}
    assert kinds(decisions) == [(128, "complaint")]
    assert [note.kind for note in law.decisions] == ["complaint"]


def heard(*losses: float, **options: object) -> Settle:
    law = Settle(**options)
    for loss in losses:
        law.feel(1.0)
        law.hear_evaluation(loss)
    return law


def test_training_may_end_after_three_evaluations_that_were_no_better() -> None:
    assert not heard(1.0, 0.9, 0.9, 0.95).view().has_decided_to_stop
    law = heard(1.0, 0.9, 0.9, 0.95, 0.91)
    assert law.view().has_decided_to_stop
    assert law.decisions == [Note(5, "done", 1.0, "3 evaluations in a row were no better than 0.9")]
    law.hear_evaluation(0.92)
    assert len(law.decisions) == 1  # it is said once
    law.hear_evaluation(0.5)
    assert not law.view().has_decided_to_stop


def test_the_patience_is_an_option_and_what_is_not_finite_says_nothing() -> None:
    assert heard(1.0, 1.1, evaluation_patience=1).view().has_decided_to_stop
    assert not heard(1.0, *[1.1] * 9, end=False).view().has_decided_to_stop
    assert not heard(1.0, math.nan, math.inf, math.nan).view().has_decided_to_stop


def test_without_evaluations_it_never_ends() -> None:
    law, decisions = fed([0.5] * 5000)
    assert not law.view().should_stop
    assert not any(decision.stop_begins for decision in decisions)


def test_its_state_goes_through_json_and_on_as_if_nothing_had_been() -> None:
    losses = [*falling(1, 60), 90.0, *diverging(1, 40.0)]
    whole, _ = fed(losses)
    whole.hear_evaluation(0.7)
    for cut in (0, 1, 3, 30, 61, 100, 200):
        first, _ = fed(losses[:cut])
        second = Settle()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for loss in losses[cut:]:
            second.feel(loss)
        second.hear_evaluation(0.7)
        assert second.state_dict() == whole.state_dict()
        assert second.decision == whole.decision or second.decision.coefficient == whole.decision.coefficient
    assert len(whole.state_dict()["log"]) == NOTES


def test_what_it_decides_is_told_in_words_that_need_no_page() -> None:
    lowered = Note(40, "lowered", 1 / 3, "the loss is at 9.1, far above the 2.3 of its start")
    assert text_of(lowered) == (
        "rate lowered to 0.3333 of the learning rate: the loss is at 9.1, far above the 2.3 of its start"
    )
    assert text_of(lowered, first=True).endswith("(lower=false leaves the rate alone)")
    skipped = Note(9, "skipped", 1.0, "a loss of nan")
    assert text_of(skipped) == "step left out: a loss of nan"
    assert "guard=false" in text_of(skipped, first=True)


@pytest.mark.parametrize("tail", [0.3, 0.8])
def test_heavy_tails_are_hardly_ever_taken_for_spikes(tail: float) -> None:
    left_out = 0
    for seed in SEEDS:
        rng, watch = random.Random(seed), Guard()
        left_out += sum(watch.is_spike(rng.lognormvariate(0, tail)) for _ in range(2000))
    assert left_out <= 0.0005 * 2000 * len(SEEDS)
