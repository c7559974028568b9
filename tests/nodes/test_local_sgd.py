"""Autonomous ranks in the Trainer: they train apart, and are evaluated, saved and ended as one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.emo_cases import assert_identical
from tests.rank_jobs.local_sgd import ASKED, EPOCH, EVERY, SPOILT
from tests.ranks import run_job

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_job("local_sgd", tmp_path_factory.mktemp("local_sgd"))


def test_ranks_drift_meet_every_few_steps_and_at_the_end_and_have_gradients_and_emotions_of_their_own(
    results: list[dict[str, Any]],
) -> None:
    one, other = (rank["apart"] for rank in results)
    steps = range(1, 2 * EPOCH + 1)
    apart = [step for step in steps if one["before_steps"][step - 1] != other["before_steps"][step - 1]]
    met_after = {0, *range(EVERY, 2 * EPOCH, EVERY), ASKED, EPOCH}
    assert apart == [step for step in steps if step - 1 not in met_after]
    assert all(mine != theirs for mine, theirs in zip(one["gradients"], other["gradients"], strict=True))
    assert one["emotion"] != other["emotion"]
    assert_identical(one["weights"], other["weights"])
    assert one["by hand"] == other["by hand"], "after training gradients are averaged again"


def test_what_is_evaluated_and_saved_is_the_average_where_a_later_callback_asks_too(
    results: list[dict[str, Any]],
) -> None:
    one, other = (rank["apart"] for rank in results)
    for step in (ASKED, EPOCH, 2 * EPOCH):
        assert one["evaluated"][step] == other["evaluated"][step] == pytest.approx(one["saved"][step], rel=1e-12)


def test_a_rank_whose_weights_are_no_numbers_is_left_out_of_the_average_and_comes_back(
    results: list[dict[str, Any]],
) -> None:
    one, other = (rank["apart"] for rank in results)
    assert math.isnan(other["before_steps"][SPOILT])
    assert not any(math.isnan(before) for before in one["before_steps"])
    assert all(weight.isfinite().all() for weight in other["weights"])
    assert "Rank 1 has weights that are not finite" in results[1]["output"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("one emotion", "emo_sync=local"),
        ("tokens averaged", "average_tokens_across_devices=False"),
        ("self-stop", "self_stop=stop needs one emotion for all ranks"),
        ("exchange", "WeightExchangeCallback is for nodes of one process each, got 2"),
    ],
)
def test_settings_with_which_ranks_would_wait_or_decide_apart_are_refused(
    results: list[dict[str, Any]], what: str, said: str
) -> None:
    assert all(said in rank["refused"][what] for rank in results)
