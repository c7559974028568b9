"""FSDP2 and DDP on two ranks: the update is that of the whole tensors, and checkpoints go wherever they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from emo_hf import EmoOptimizer
from emo_hf.laws import Note
from tests.emo_cases import OPTIMIZERS, assert_identical
from tests.rank_jobs import fsdp2 as rank_jobs
from tests.rank_jobs.sharded_runs import STEPS, WARM_UP
from tests.ranks import run_job, shared_folder

pytestmark = pytest.mark.long

EACH = pytest.mark.parametrize("name", [cls.__name__ for cls in OPTIMIZERS])
SAVED = [(source, cls) for source, saved in rank_jobs.SAVED.items() for cls in saved]
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
    assert one["rates"] == other["rates"]


@pytest.mark.parametrize(
    ("variant", "name"),
    [(variant, cls.__name__) for variant, (_, every) in rank_jobs.VARIANTS.items() for cls in every],
)
def test_two_ranks_train_as_one_process_does_on_the_whole_batches(fsdp2: Results, name: str, variant: str) -> None:
    one, other = (rank["each optimizer"][f"{name} {variant}"] for rank in fsdp2)
    for kind in ("fsdp2", "ddp"):
        assert_identical(one[kind], other[kind])
        assert_close(one[kind], one["alone"])


@pytest.mark.parametrize("cls", rank_jobs.EVERY)
def test_these_runs_visit_every_range_of_the_emotion_that_a_rule_tells_apart(
    fsdp2: Results, cls: type[torch.optim.Optimizer]
) -> None:
    sizes = [abs(scalar) for scalar in fsdp2[0]["each optimizer"][f"{cls.__name__} plain"]["alone"]["scalars"]]
    assert max(sizes) > 0.25, "the emotion never spoke: these runs show nothing"
    if issubclass(cls, EmoOptimizer) and cls.version_named(None).rule.reads_scalar:
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


@EACH
def test_torch_creates_the_state_and_changes_nothing_else(fsdp2: Results, name: str) -> None:
    for rank in fsdp2:
        for after, before in rank["new state"][name]["looks"]:
            assert_identical(after, before)
        assert all((value == 0).all() for state in rank["new state"][name]["state"] for value in state.values())


@EACH
def test_a_nan_in_the_shard_of_one_rank_moves_nothing_where_it_is_and_everything_else(
    fsdp2: Results, name: str
) -> None:
    one, other = (rank["spoilt"][name] for rank in fsdp2)
    assert [run["metrics"]["emo/nonfinite_gradients"] for run in (one, other)] == [0, 1]
    assert_identical(one["spoilt"], other["spoilt"])
    for before, now, after in zip(one["before"], one["spoilt"], one["after"], strict=True):
        assert now.isfinite().all()
        assert after.isfinite().all()
        assert not torch.equal(before, now)


def test_a_nan_in_the_shard_of_one_rank_has_all_ranks_skip_the_step_where_that_is_wanted(fsdp2: Results) -> None:
    for rank in fsdp2:
        runs = [run for name, run in rank["spoilt"].items() if name.endswith(("skip_step", "settle"))]
        assert len(runs) > 4
        for run in runs:
            assert_identical(run["before"], run["spoilt"])
            assert not torch.equal(run["after"][0], run["before"][0])
            assert all(weight.isfinite().all() for weight in run["after"])
        assert runs[-1]["decisions"] == [Note(2, "skipped", 1.0, "gradients that are not finite")]


@EACH
def test_shards_in_bfloat16_move_and_are_the_same_for_all_ranks(fsdp2: Results, name: str) -> None:
    one, other = (rank["low precision"][name] for rank in fsdp2)
    assert_identical(one, other)
    for before, after in zip(one["before"], one["after"], strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)
    assert all(state["compensation"].dtype is torch.bfloat16 for state in one["state"])
    assert any((state["compensation"] != 0).any() for state in one["state"])


def test_a_run_goes_on_from_its_state_dict_full_or_flat_to_the_last_bit(fsdp2: Results) -> None:
    for rank in fsdp2:
        assert len(rank["state dicts"]) == len(rank_jobs.EVERY) + len(rank_jobs.KINDS)
        for resumed, uninterrupted in rank["state dicts"].values():
            assert_identical(resumed, uninterrupted)


@pytest.mark.parametrize(("source", "cls"), SAVED)
def test_a_checkpoint_is_resumed_by_two_ranks_under_either_strategy_and_by_one_process(
    fsdp2: Results, folder: Path, cls: type[torch.optim.Optimizer], source: str
) -> None:
    observations = WARM_UP + STEPS
    for target in ("fsdp2", "ddp") if cls in rank_jobs.KINDS else ("fsdp2",):
        for rank in fsdp2:
            resumed, went_on = rank["crossing"][f"{cls.__name__} from {source} to {target}"]
            assert resumed.pop("observations at resume", observations) == observations
            (assert_identical if source == target else assert_close)(resumed, went_on)
    if source != "alone" and cls in rank_jobs.KINDS:
        resumed = rank_jobs.resume_in("alone", cls, folder / f"{source} {cls.__name__}")
        assert resumed.pop("observations at resume") == observations
        assert_close(resumed, went_on)


def test_the_ranks_of_a_trainer_with_adamw_have_one_emotion_and_the_same_weights_at_every_step(
    fsdp2: Results,
) -> None:
    one, other = (rank["attached trainer"] for rank in fsdp2)
    assert_identical(one, {**other, "logged": one["logged"], "started": one["started"]})
    assert len(one["sums"]) == len(one["felt"]) == one["emotion"]["observations"] == 40
    assert one["emotion"]["skipped"] == 0
    assert one["felt"] == pytest.approx(one["logged"], rel=1e-5)
    travelling = one["started"][1:] + other["started"][1:]  # in the first step the ranks compare their options before
    assert all(travelling), "the loss travels while backward computes"
