"""Autonomous ranks in the Trainer: they train apart, and are evaluated, saved and ended as one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.emo_cases import assert_identical
from tests.rank_jobs.local_sgd import EPOCH
from tests.ranks import run_job

pytestmark = pytest.mark.long

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("local_sgd", tmp_path_factory.mktemp("local_sgd"))


def both(results: Results, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return results[0][name], results[1][name]


def steps_together(one: list[float], other: list[float]) -> list[int]:
    """The steps after which the ranks had the same weights."""
    return [step for step, (mine, theirs) in enumerate(zip(one, other, strict=True), start=1) if mine == theirs]


def test_ranks_drift_and_meet_every_few_steps_and_at_the_end(results: Results) -> None:
    one, other = both(results, "every few steps")
    assert steps_together(one["after steps"], other["after steps"]) == [5, 10, 15]
    assert_identical(one["weights"], other["weights"])
    assert one["emotion"] != other["emotion"]


def test_gradients_stay_on_the_rank_that_has_computed_them(results: Results) -> None:
    one, other = both(results, "every few steps")
    assert steps_together(one["gradients"], other["gradients"]) == []


def test_a_rank_whose_weights_are_no_numbers_is_left_out_of_the_average_and_comes_back(results: Results) -> None:
    one, other = both(results, "spoilt rank")
    assert math.isnan(other["after steps"][2])
    assert steps_together(one["after steps"], other["after steps"]) == [4, 8]
    assert all(weight.isfinite().all() for weight in other["weights"])
    assert "Rank 1 has weights that are not finite" in results[1]["output"]


@pytest.mark.parametrize("step", [EPOCH, 2 * EPOCH])
def test_at_the_end_of_an_epoch_the_average_is_evaluated_and_saved(results: Results, step: int) -> None:
    one, other = both(results, "by the epoch")
    assert step not in steps_together(one["after steps"], other["after steps"]), "this shows nothing"
    assert one["evaluated"][step] == other["evaluated"][step] == pytest.approx(one["saved"][step], rel=1e-12)


def test_what_a_later_callback_asks_for_is_of_the_average_too(results: Results) -> None:
    one, other = both(results, "by the epoch")
    assert one["evaluated"][3] == other["evaluated"][3] == pytest.approx(one["saved"][3], rel=1e-12)


def test_training_that_raises_leaves_a_model_that_averages_gradients(results: Results) -> None:
    one, other = both(results, "broken off")
    assert one["said"] == other["said"] == "broken off"
    assert one["by hand"] == other["by hand"]


def test_training_goes_on_as_before_after_it_was_broken_off_and_ends_for_good(results: Results) -> None:
    one, other = both(results, "broken off")
    assert steps_together(one["after steps"], other["after steps"]) == [5]
    assert one["by hand at the end"] == other["by hand at the end"]


def test_settings_that_would_make_ranks_wait_are_refused(results: Results) -> None:
    for rank in both(results, "refused"):
        assert "emo_sync=local" in rank["one emotion"]
        assert "average_tokens_across_devices=False" in rank["tokens averaged"]


def test_a_self_stop_that_each_rank_would_decide_for_itself_is_refused(results: Results) -> None:
    for rank in both(results, "refused"):
        assert "self_stop=stop needs one emotion for all ranks" in rank["self-stop"]


def test_an_exchange_through_a_folder_is_refused_in_a_job_of_several_processes(results: Results) -> None:
    for rank in both(results, "refused"):
        assert rank["exchange"] == "WeightExchangeCallback is for nodes of one process each, got 2"
