"""One emotion for all ranks: the same decisions, weights and signals everywhere, and those of one rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from emo_hf import EmoNavi
from tests.emo_cases import OPTIMIZERS, assert_identical, parameters
from tests.rank_jobs.ddp import BATCH, WHOLE_BATCHES, train
from tests.rank_jobs.kinds import one_of_each_kind
from tests.ranks import run_job

pytestmark = pytest.mark.long

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("plain", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture
def registered() -> Iterator[None]:
    emo_hf.register()
    yield
    emo_hf.unregister()


def both(results: Results, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return results[0][name], results[1][name]


def test_a_loss_however_it_is_shown_is_averaged_over_the_ranks(plain: Results) -> None:
    for rank in both(plain, "observed losses"):
        assert rank["felt"] == pytest.approx([2.0, 2.0, 2.0])
        assert rank["after the copy"] == 2


def test_a_rank_without_a_loss_contributes_nothing_and_one_with_nan_spoils_the_step_for_all(plain: Results) -> None:
    one, other = both(plain, "missing losses")
    assert one == other
    shorts, observations, skipped = zip(*one["views"], strict=True)
    assert shorts[:3] == pytest.approx((5.0, 5.6, 5.6))
    assert observations == (1, 2, 2, 2, 2, 3)
    assert skipped == (0, 0, 0, 1, 2, 2)
    assert not math.isnan(shorts[-1])


def test_a_rank_whose_loss_lies_elsewhere_waits_for_it_in_warm_up_too(plain: Results) -> None:
    assert [rank["missing losses"]["warm-up"] for rank in plain] == [3.0, 3.0]


@pytest.mark.parametrize("name", [cls.__name__ for cls in one_of_each_kind(OPTIMIZERS)])
def test_one_rank_may_ask_for_the_state_before_the_first_step_while_the_others_do_not(
    plain: Results, name: str
) -> None:
    one, other = (rank["state made on one rank"][name] for rank in plain)
    assert one["emotion"]["short"] == pytest.approx(1.5)
    assert_identical(one, other)


def test_ranks_may_run_different_numbers_of_micro_batches_between_synchronizations(plain: Results) -> None:
    one, other = both(plain, "uneven accumulation")
    assert one["felt"] == pytest.approx([1.0] * 3)  # that of each of the 2 and 4 micro-batches
    assert_identical(one, other)


@pytest.mark.parametrize("name", ["trainer", "trainer accumulating", "trainer on whole batches"])
def test_after_a_trainer_run_all_ranks_have_the_same_weights_and_emotion(ddp: Results, name: str) -> None:
    one, other = both(ddp, name)
    assert_identical(one["weights"], other["weights"])
    assert one["emotion"] == other["emotion"]
    assert one["felt"] == other["felt"]
    assert one["emotion"]["observations"] == len(one["felt"]) > 15


@pytest.mark.parametrize("name", ["trainer", "trainer accumulating", "trainer on whole batches"])
def test_the_loss_that_the_ranks_feel_is_the_one_that_the_trainer_logs(ddp: Results, name: str) -> None:
    assert ddp[0][name]["felt"] == pytest.approx(ddp[0][name]["logged"], rel=1e-6)


def test_in_the_trainer_the_exchange_is_under_way_while_backward_runs(ddp: Results) -> None:
    for rank in ddp:  # in the first step they compare their options before
        assert not rank["trainer accumulating"]["started"][0]
        assert all(rank["trainer accumulating"]["started"][1:])


def test_two_ranks_train_as_one_rank_does_on_the_same_global_batches(
    ddp: Results, registered: None, tmp_path: Path
) -> None:
    alone = train(tmp_path, **WHOLE_BATCHES | {"batch": 2 * BATCH})
    two = ddp[0]["trainer on whole batches"]
    assert two["felt"] == pytest.approx(alone["felt"], rel=1e-5)
    assert two["emotion"] == pytest.approx(alone["emotion"], rel=1e-4, abs=1e-6)
    torch.testing.assert_close(two["weights"], alone["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["loop", "loop accumulating"])
def test_after_an_accelerate_loop_all_ranks_have_the_same_weights_and_emotion(ddp: Results, name: str) -> None:
    one, other = both(ddp, name)
    assert_identical(one, other)
    assert one["emotion"]["observations"] >= 20


def test_autonomous_ranks_feel_their_own_losses_and_one_of_them_says_so_once_a_run(ddp: Results) -> None:
    one, other = both(ddp, "trainer apart")
    assert one["emotion"] != other["emotion"]
    assert sum(one["started"]) == 0
    assert [rank["output"].count("emo_sync=local: each of the 2 ranks") for rank in ddp] == [1, 0]


def test_a_mode_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"emo_sync='both' .* it takes one of global, local"):
        EmoNavi(parameters(), emo_sync="both")


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("law", "emo_law is v3.1 on rank 0 and v3.6 on rank 1"),
        ("weight decay", "weight_decay is 0.01 on rank 0 and 0.2 on rank 1"),
        ("non-finite gradients", "nonfinite is leave_out on rank 0 and skip_step on rank 1"),
        ("generation", "version is v3.1 on rank 0 and v3.6 on rank 1"),
        ("emotion of rank 0 its own", "emo_sync is local on rank 0 and global on rank 1"),
        ("emotion of rank 1 its own", "emo_sync is global on rank 0 and local on rank 1"),
        ("attached", "emo_law is robust on rank 0 and v3.1 on rank 1"),
    ],
)
def test_ranks_with_different_options_stop_and_say_which_instead_of_drifting_or_waiting(
    plain: Results, what: str, named: str
) -> None:
    for said in both(plain, "different options"):
        assert "the ranks of this job have different options" in said[what]
        assert named in said[what]


@pytest.mark.parametrize("what", ["learning rate", "each its own emotion"])
def test_ranks_may_have_rates_of_their_own_and_laws_of_their_own_where_nothing_is_shared(
    plain: Results, what: str
) -> None:
    assert [said[what] for said in both(plain, "different options")] == ["", ""]
