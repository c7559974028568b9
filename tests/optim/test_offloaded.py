"""Two ranks of FSDP2 with offloaded shards, and with steps in backward: the run is the ordinary one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emo_cases import assert_identical
from tests.ranks import run_job

pytestmark = pytest.mark.long

Results = list[dict[str, Any]]
EACH = pytest.mark.parametrize("name", ["EmoNavi", "EmoFact"])
HOW = ["", " offloaded", " in backward", " offloaded in backward"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("offloaded", tmp_path_factory.mktemp("offloaded"))


@pytest.mark.parametrize("how", HOW[1:])
@EACH
def test_offloaded_shards_and_steps_in_backward_change_nothing(ranks: Results, name: str, how: str) -> None:
    for rank in ranks:
        assert rank[name + how]["whole"]["emotion"]["observations"] == 10
        assert_identical(rank[name + how], rank[name])


@pytest.mark.parametrize("how", HOW)
@EACH
def test_a_run_goes_on_from_its_checkpoint_to_the_last_bit(ranks: Results, name: str, how: str) -> None:
    for rank in ranks:
        assert_identical(rank[name + how]["resumed"], rank[name + how]["whole"])


def test_steps_in_backward_leave_no_shard_of_a_gradient(ranks: Results) -> None:
    assert [rank["gradients left"]["left"] for rank in ranks] == [0, 0]


def test_ranks_that_average_gradients_after_backward_are_refused_and_ranks_of_their_own_are_not(
    ranks: Results,
) -> None:
    for rank in ranks:
        assert "DistributedDataParallel averages the gradients" in rank["refused"]["model"]
        assert "several ranks share one emotion" in rank["refused"]["ranks"]
        assert rank["refused"]["local"] == 1
