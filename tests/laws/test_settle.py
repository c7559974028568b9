"""What `settle` leaves out, when it lowers the rate, and when it says that training may end."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable

import pytest

from emo_hf.laws import Decision, Note
from emo_hf.laws.settle import NOTES, Settle
from emo_hf.laws.words import text_of

SEEDS = range(4)


def falling(seed: int, steps: int, noise: float = 0.2) -> list[float]:
    """A loss that falls from about 2.5 to about 1, with noise in proportion."""
    rng = random.Random(seed)
    return [(1.0 + 1.5 / (1.0 + step / 50)) * math.exp(noise * rng.gauss(0, 1)) for step in range(steps)]


def diverging(seed: int, top: float, from_step: int = 2) -> list[float]:
    """A loss of about 2 that leaps up by `top` and stays there."""
    rng = random.Random(seed)
    return [2.0 + rng.gauss(0, 0.1) + (top if step >= from_step else 0.0) for step in range(200)]


def fed(losses: Iterable[float], **options: object) -> tuple[Settle, list[Decision]]:
    law = Settle(**options)
    return law, [law.feel(loss) for loss in losses]


def kinds(decisions: Iterable[Decision]) -> list[tuple[int, str]]:
    return [(decision.note.step, decision.note.kind) for decision in decisions if decision.note is not None]


def test_an_ordinary_run_is_left_alone() -> None:
    for seed, noise in itertools.product(SEEDS, (0.02, 0.2, 0.6)):
        law, decisions = fed(falling(seed, 600, noise), guard=False)
        assert {*decisions} == {Decision()}
        assert not law.decisions


def test_a_spike_is_left_out_and_leaves_no_trace() -> None:
    for seed in SEEDS:
        *losses, following = falling(seed, 151)
        law, _ = fed(losses)
        before = law.short, law.steps
        decision = law.feel(60.0)
        assert decision.skip
        assert (law.short, law.steps - 1, law.skipped) == (*before, 1)
        assert decision.note == Note(law.steps, "skipped", 1.0, f"a loss of 60 where {law.center:.6g} is usual")
        assert not law.feel(following).skip


def test_what_is_not_finite_is_left_out_from_the_first_step_on_but_not_without_the_guard() -> None:
    for loss in (math.nan, math.inf, -math.inf):
        law, (decision,) = fed([loss])
        assert (decision.skip, law.view().skipped) == (True, 1)
        assert not fed([loss], guard=False)[1][0].skip
    assert len(fed([math.nan] * 12)[0].decisions) == NOTES
    law, _ = fed([2.0, 1.9])
    refused = law.refuse_gradients()
    assert (refused.skip, refused.note) == (True, Note(2, "skipped", 1.0, "gradients that are not finite"))
    assert (law.guard, Settle(guard=False).guard) == (True, False)


def test_rare_hard_data_are_taken_from_their_second_batch_on() -> None:
    for seed, share in itertools.product(SEEDS, (0.01, 0.02, 0.05)):
        rng, law, hard, left_out = random.Random(1000 + seed), Settle(), 0, 0
        for step, loss in enumerate(falling(seed, 2000, 0.1)):
            is_hard = step > 32 and rng.random() < share
            decision = law.feel(loss * rng.uniform(4.0, 6.0) if is_hard else loss)
            hard += is_hard
            left_out += decision.skip
            assert is_hard or not decision.skip
        assert hard > 10
        assert left_out <= 3


def test_a_level_that_has_changed_and_losses_that_rise_without_end_are_learned_anew() -> None:
    usual = [1.0 + 0.01 * (step % 3) for step in range(100)]
    law, decisions = fed(usual + [50.0 + step % 3 for step in range(50)])
    assert sum(decision.skip for decision in decisions) <= 3
    assert law.center == pytest.approx(51.0, abs=1.0)
    _, decisions = fed(usual + [10.0**power for power in range(1, 7)])
    assert [decision.skip for decision in decisions[-6:]] == [True] * 3 + [False] * 3


def test_heavy_tails_are_hardly_ever_taken_for_spikes() -> None:
    for tail in (0.3, 0.8):
        left_out = 0
        for seed in range(6):
            rng = random.Random(seed)
            left_out += fed((rng.lognormvariate(0, tail) for _ in range(2000)), lower=False)[0].skipped
        assert left_out <= 0.0005 * 2000 * 6


def test_a_loss_far_above_its_beginning_lowers_the_rate() -> None:
    for seed, (top, from_step) in itertools.product(SEEDS, ((1.5, 4), (30.0, 2), (8.0, 40))):
        _, decisions = fed(diverging(seed, top, from_step), guard=False)
        (first, kind), *_ = kinds(decisions)
        assert kind == "lowered"
        assert first <= from_step + 60
        lowered = decisions[first - 1]
        assert lowered.coefficient == lowered.decay_factor == pytest.approx(1 / 3)
        assert lowered.note is not None
        assert lowered.note.factor == lowered.coefficient
        assert kinds(fed(diverging(seed, top), guard=False, lower=False)[1]) == []


def test_it_is_lowered_again_only_where_the_loss_stays_up_and_never_without_end() -> None:
    _, stays = fed([2.0, 2.1, 1.9, 2.0] + [9.0 + 0.1 * (step % 2) for step in range(600)], guard=False)
    steps = [step for step, _ in kinds(stays)]
    assert len(steps) == 6
    assert all(later - earlier >= 32 for earlier, later in itertools.pairwise(steps))
    assert stays[-1].coefficient >= 1e-3
    _, falls = fed([2.0, 2.1, 1.9, 2.0] + [9.0 * 0.99**step + 0.1 * (step % 2) for step in range(300)], guard=False)
    assert len(kinds(falls)) == 1


def test_the_beginning_is_the_first_loss_or_the_mean_of_the_first_four_whichever_is_lower() -> None:
    for start, beginning in (([2.0, 30.0, 31.0, 29.0], 2), ([9.0, 1.0, 1.1, 0.9], 3)):
        law, _ = fed([*start, *[40.0] * 60], guard=False)
        assert f"far above the {beginning} of its start" in law.decisions[0].reason


def test_a_loss_that_scatters_around_zero_changes_no_rate_and_is_complained_of_once() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        law, decisions = fed((rng.gauss(0, 1) * (1 + step / 200) for step in range(600)), guard=False)
        assert {decision.coefficient for decision in decisions} == {1.0}
        assert kinds(decisions) == [(128, "complaint")]
        assert [note.kind for note in law.decisions] == ["complaint"]


def heard(*losses: float, **options: object) -> Settle:
    law = Settle(**options)
    for loss in losses:
        law.feel(1.0)
        law.hear_evaluation(loss)
    return law


def test_training_may_end_after_three_evaluations_that_were_no_better_and_not_by_anything_else() -> None:
    assert not heard(1.0, 0.9, 0.9, 0.95).view().has_decided_to_stop
    law = heard(1.0, 0.9, 0.9, 0.95, 0.91)
    assert law.view().has_decided_to_stop
    law.hear_evaluation(0.92)
    assert law.decisions == [Note(5, "done", 1.0, "3 evaluations in a row were no better than 0.9")]  # said once
    law.hear_evaluation(0.5)
    assert not law.view().has_decided_to_stop
    assert heard(1.0, 1.1, evaluation_patience=1).view().has_decided_to_stop
    assert not heard(1.0, *[1.1] * 9, end=False).view().has_decided_to_stop
    assert not heard(1.0, math.nan, math.inf, math.nan).view().has_decided_to_stop
    law, decisions = fed([0.5] * 1000)
    assert not law.view().should_stop
    assert not any(decision.stop_begins for decision in decisions)


@pytest.mark.parametrize(
    ("kind", "said", "at_first"),
    [("lowered", "rate lowered to 0.3333 of the learning rate: why", " (lower=false leaves the rate alone)"),
     ("skipped", "step left out: why", " (guard=false takes such steps; further ones are counted in emo/skipped)"),
     ("complaint", "no change of rate: why", "")],
)  # fmt: skip
def test_what_it_decides_is_told_in_words_that_need_no_page(kind: str, said: str, at_first: str) -> None:
    note = Note(40, kind, 1 / 3, "why")
    assert (text_of(note), text_of(note, first=True)) == (said, said + at_first)
