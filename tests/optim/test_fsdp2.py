"""FSDP2 and DDP on two ranks: the update is that of the whole tensors, and checkpoints go wherever they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from emo_hf import EmoOptimizer
from tests.emo_cases import OPTIMIZERS, assert_identical
from tests.rank_jobs import fsdp2 as rank_jobs
from tests.ranks import run_job, shared_folder

pytestmark = pytest.mark.long

EACH = pytest.mark.parametrize("name", [cls.__name__ for cls in OPTIMIZERS])
SAVED = [(source, cls.__name__) for source, saved in rank_jobs.SAVED.items() for cls in saved]
BY_TWO_RANKS = [(source, name) for source, name in SAVED if source != "alone"]
OBSERVATIONS = rank_jobs.WARM_UP + rank_jobs.STEPS
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder("fsdp2", tmp_path_factory.mktemp("fsdp2"))


@pytest.fixture(scope="module")
def fsdp2(folder: Path) -> Results:
    return run_job("fsdp2", folder)


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one["state"], other["state"], rtol=1e-4, atol=1e-5)
    assert one["emotion"] == pytest.approx(other["emotion"], rel=1e-4, abs=1e-5)
    assert one["memory"] == pytest.approx(other["memory"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", ["fsdp2", "ddp"])
@pytest.mark.parametrize("variant", rank_jobs.VARIANTS)
@EACH
def test_two_ranks_train_as_one_process_does_on_the_whole_batches(
    fsdp2: Results, name: str, variant: str, kind: str
) -> None:
    one, other = (rank["each optimizer"][f"{name} {variant}"] for rank in fsdp2)
    assert_identical(one[kind], other[kind])
    assert_close(one[kind], one["alone"])


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_these_runs_visit_every_range_of_the_emotion_that_a_rule_tells_apart(
    fsdp2: Results, cls: type[EmoOptimizer]
) -> None:
    scalars = fsdp2[0]["each optimizer"][f"{cls.__name__} plain"]["alone"]["scalars"]
    assert max(map(abs, scalars)) > 0.25, "the emotion never spoke: these runs show nothing"
    if cls.version_named(None).rule.reads_scalar:
        sizes = [abs(scalar) for scalar in scalars]
        for low, high in ((0.0, 0.1), (0.3, 0.5), (0.6, 1.0)):
            assert any(low <= size <= high for size in sizes), f"|σ| was never between {low} and {high}: {sizes}"


def test_the_average_of_the_weights_is_that_of_one_process_and_travels_in_checkpoints(fsdp2: Results) -> None:
    one, other = (rank["averaged"] for rank in fsdp2)
    assert_identical(one, other)
    for what in ("average", "weights"):
        assert_close(one[f"fsdp2, {what}"], one[f"alone, {what}"])
    assert_identical(one["resumed"], one["fsdp2, weights"])
    averages = [state["emo_average"] for state in one["fsdp2, weights"]["state"]]
    assert not any(map(torch.equal, averages, one["fsdp2, weights"]["weights"]))


def test_a_step_of_emofact_sums_the_columns_of_all_matrices_at_once(fsdp2: Results) -> None:
    # The loss, and for each parameter group the widths of its matrices.
    assert fsdp2[0]["collectives"]["elements"] == [2, 5 + 3, 4]


@EACH
def test_torch_creates_the_state_and_changes_nothing_else(fsdp2: Results, name: str) -> None:
    for rank in fsdp2:
        looks = rank["new state"][name]
        assert_identical(looks["created"], looks["fresh"])
        assert all((value == 0).all() for state in looks["state"] for value in state.values())
        assert_identical(looks["after"], looks["before"])


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@EACH
def test_a_nan_in_the_shard_of_one_rank_moves_nothing_where_it_is_and_everything_else(
    fsdp2: Results, name: str
) -> None:
    one, other = (rank["spoilt"][f"{name} leave_out"] for rank in fsdp2)
    assert (one["count"], other["count"]) == (0, 1)
    assert_identical(one["spoilt"], other["spoilt"])
    for before, now, after in zip(one["before"], one["spoilt"], one["after"], strict=True):
        assert now.isfinite().all()
        assert after.isfinite().all()
        assert not torch.equal(before, now)


def test_a_nan_in_the_shard_of_one_rank_has_all_ranks_skip_the_step_where_that_is_wanted(fsdp2: Results) -> None:
    for rank in fsdp2:
        runs = [run for name, run in rank["spoilt"].items() if name.endswith("skip_step")]
        assert len(runs) > 3
        for run in runs:
            assert_identical(run["before"], run["spoilt"])
            assert not torch.equal(run["after"][0], run["before"][0])


@EACH
def test_shards_in_bfloat16_move_and_are_the_same_for_all_ranks(fsdp2: Results, name: str) -> None:
    one, other = (rank["low precision"][name] for rank in fsdp2)
    assert_identical(one, other)
    for before, after in zip(one["before"], one["after"], strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)
    assert all(state["compensation"].dtype is torch.bfloat16 for state in one["state"])
    assert any((state["compensation"] != 0).any() for state in one["state"])


@pytest.mark.parametrize("kind", ["sharded", "full"])
@EACH
def test_a_run_goes_on_from_its_state_dict_to_the_last_bit(fsdp2: Results, name: str, kind: str) -> None:
    for rank in fsdp2:
        results = rank["state dicts"][f"{name} {kind}"]
        assert_identical(results["resumed"], results["uninterrupted"])


@pytest.mark.parametrize("target", ["fsdp2", "ddp"])
@pytest.mark.parametrize(("source", "name"), SAVED)
def test_a_checkpoint_is_resumed_by_two_ranks_under_either_strategy(
    fsdp2: Results, name: str, source: str, target: str
) -> None:
    for rank in fsdp2:
        results = rank["crossing"][f"{name} from {source} to {target}"]
        assert results["resumed"].pop("observations at resume", OBSERVATIONS) == OBSERVATIONS
        if source == target:
            assert_identical(results["resumed"], results["went on"])
        else:
            assert_close(results["resumed"], results["went on"])


@pytest.mark.parametrize(("source", "name"), BY_TWO_RANKS)
def test_a_checkpoint_of_two_ranks_is_resumed_by_one_process(
    fsdp2: Results, folder: Path, name: str, source: str
) -> None:
    cls = next(cls for cls in OPTIMIZERS if cls.__name__ == name)
    resumed = rank_jobs.resume_in("alone", cls, folder / f"{source} {name}")
    assert resumed.pop("observations at resume") == OBSERVATIONS
    assert_close(resumed, fsdp2[0]["crossing"][f"{name} from {source} to {source}"]["went on"])
