"""One emotion for all ranks: the same decisions, weights and signals everywhere, and those of one rank."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from emo_hf import EmoNavi
from tests.emo_cases import assert_identical, parameters
from tests.rank_jobs.ddp import BATCH, WHOLE_BATCHES, train
from tests.rank_jobs.plain import EMPTY, EMPTY_BATCHES, STEPS
from tests.ranks import run_job

pytestmark = pytest.mark.long

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("plain", tmp_path_factory.mktemp("plain"))


def the_same_on_both(results: Results, name: str) -> Any:
    assert_identical(results[0][name], results[1][name])
    return results[0][name]


def test_a_loss_however_it_is_shown_is_averaged_over_the_ranks(results: Results) -> None:
    emotions = the_same_on_both(results, "observed losses")
    assert [emotion.short for emotion in emotions] == pytest.approx([2.0] * 3)
    assert [emotion.observations for emotion in emotions] == [1, 1, 2]


def test_a_rank_without_a_loss_contributes_nothing_and_one_with_nan_spoils_the_step_for_all(results: Results) -> None:
    felt = the_same_on_both(results, "missing losses")
    assert felt["warm-up"] == 3.0
    shorts, observations, skipped = zip(*felt["views"], strict=True)
    assert shorts[:3] == pytest.approx((5.0, 5.6, 5.6))
    assert observations == (1, 2, 2, 2, 2, 3)
    assert skipped == (0, 0, 0, 1, 2, 2)
    assert not math.isnan(shorts[-1])


def test_one_rank_may_ask_for_the_state_before_the_first_step_while_the_others_do_not(results: Results) -> None:
    for made in the_same_on_both(results, "state made on one rank").values():
        assert made["emotion"]["short"] == pytest.approx(1.5)


def test_ranks_may_run_different_numbers_of_micro_batches_between_synchronizations(results: Results) -> None:
    felt = the_same_on_both(results, "uneven accumulation")["felt"]
    assert felt == pytest.approx([1.0] * 3)  # that of each of the 2 and 4 micro-batches


@pytest.mark.parametrize(("loss_of", "optim"), EMPTY_BATCHES)
def test_with_an_empty_batch_on_one_rank_all_ranks_feel_the_same_and_go_on(
    loss_of: str, optim: str, results: Results
) -> None:
    steps = the_same_on_both(results, f"empty batches, {loss_of}, {optim}")
    assert len(steps) == STEPS
    empty = {step for steps in EMPTY.values() for step in steps} if loss_of == "nan" else set()
    for step, after in enumerate(steps):
        skipped = sum(left_out <= step for left_out in empty)
        emotion = after["emotion"]
        assert all(map(math.isfinite, emotion.values()))
        assert (emotion["observations"], emotion["skipped"]) == (step + 1 - skipped, skipped)
        assert after["weight"].isfinite().all()
    for before, after in itertools.pairwise(steps):
        assert not torch.equal(before["weight"], after["weight"]), "training goes on at every step"


def test_an_empty_batch_whose_loss_is_left_out_does_not_count_and_a_loss_of_zero_does(results: Results) -> None:
    left_out, zero = (results[0][f"empty batches, {of}, emonavi"][0]["emotion"]["short"] for of in ("none", "zero"))
    assert left_out == pytest.approx(2.0 * zero)


@pytest.mark.parametrize("name", ["trainer accumulating", "trainer on whole batches"])
def test_in_the_trainer_all_ranks_have_the_weights_and_emotion_of_the_logged_loss_which_travels_during_backward(
    results: Results, name: str
) -> None:
    run = the_same_on_both(results, name)
    assert run["emotion"]["observations"] == len(run["felt"]) > 15
    assert run["felt"] == pytest.approx(run["logged"], rel=1e-6)
    assert not run["started"][0]  # they compare their options before
    assert all(run["started"][1:])


def test_two_ranks_train_as_one_rank_does_on_the_same_global_batches(
    results: Results, registered: None, tmp_path: Path
) -> None:
    alone = train(tmp_path, **WHOLE_BATCHES | {"batch": 2 * BATCH})
    two = results[0]["trainer on whole batches"]
    assert two["felt"] == pytest.approx(alone["felt"], rel=1e-5)
    assert two["emotion"] == pytest.approx(alone["emotion"], rel=1e-4, abs=1e-6)
    torch.testing.assert_close(two["weights"], alone["weights"], rtol=1e-4, atol=1e-5)


def test_after_an_accelerate_loop_that_accumulates_all_ranks_have_the_same_weights_and_emotion(
    results: Results,
) -> None:
    assert the_same_on_both(results, "loop")["emotion"]["observations"] >= 20


def test_autonomous_ranks_feel_their_own_losses_and_one_of_them_says_so_once_a_run(results: Results) -> None:
    one, other = (rank["trainer apart"] for rank in results)
    assert one["emotion"] != other["emotion"]
    assert sum(one["started"]) == 0
    said = [
        rank["output"].partition("trainer apart: ")[0].rpartition("trainer on whole batches: ")[2] for rank in results
    ]
    assert [each.count("emo_sync=local: each of the 2 ranks") for each in said] == [1, 0]


def test_a_mode_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"emo_sync='both' .* it takes one of global, local"):
        EmoNavi(parameters(), emo_sync="both")


def test_ranks_with_different_options_say_which_instead_of_drifting_or_waiting_where_that_matters(
    results: Results,
) -> None:
    named = {
        "law": "emo_law is v3.1 on rank 0 and v3.6 on rank 1",
        "weight decay": "weight_decay is 0.01 on rank 0 and 0.2 on rank 1",
        "non-finite gradients": "nonfinite is leave_out on rank 0 and skip_step on rank 1",
        "generation": "version is v3.1 on rank 0 and v3.6 on rank 1",
        "emotion of rank 0 its own": "emo_sync is local on rank 0 and global on rank 1",
        "emotion of rank 1 its own": "emo_sync is global on rank 0 and local on rank 1",
        "attached": "emo_law is robust on rank 0 and v3.1 on rank 1",
        "learning rate": "",
        "each its own emotion": "",
    }
    said = the_same_on_both(results, "different options")
    assert said.keys() == named.keys()
    for what, words in named.items():
        assert words in said[what]
        assert ("the ranks of this job have different options" in said[what]) is bool(words) is bool(said[what])
