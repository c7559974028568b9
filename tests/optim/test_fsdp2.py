"""FSDP2 on two ranks: the update is that of the whole tensors, and checkpoints go wherever they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.emo_cases import assert_identical
from tests.rank_jobs import fsdp2 as rank_jobs
from tests.ranks import run_job

pytestmark = pytest.mark.long

NAMES = ["EmoNavi", "EmoFact", "EmoLynx"]
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def fsdp2(folder: Path) -> Results:
    return run_job("fsdp2", folder)


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one["state"], other["state"], rtol=1e-4, atol=1e-5)
    assert one["emotion"] == pytest.approx(other["emotion"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("options", ["plain", "shadow", "uphill"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_run_is_that_of_one_process_on_the_whole_batch(fsdp2: Results, name: str, options: str) -> None:
    for rank in fsdp2:
        results = rank["each rule"][f"{name} {options}"]
        assert_close(results["sharded"], results["alone"])
    one, other = (rank["each rule"][f"{name} {options}"]["sharded"] for rank in fsdp2)
    assert_identical(one, other)


def test_a_step_of_emofact_sums_the_columns_of_all_matrices_at_once(fsdp2: Results) -> None:
    assert fsdp2[0]["collectives"]["elements"] == [2, 4 + 5 + 3]  # the loss, and the widths of the three matrices


@pytest.mark.parametrize("kind", ["sharded", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_its_state_dict_to_the_last_bit(fsdp2: Results, name: str, kind: str) -> None:
    for rank in fsdp2:
        results = rank["state dicts"][f"{name} {kind}"]
        assert_identical(results["resumed"], results["uninterrupted"])


@pytest.mark.parametrize("target", ["fsdp2", "ddp"])
@pytest.mark.parametrize("source", ["fsdp2", "ddp"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_two_ranks_is_resumed_under_either_strategy(
    fsdp2: Results, name: str, source: str, target: str
) -> None:
    for rank in fsdp2:
        results = rank["crossing"][f"{name} from {source} to {target}"]
        assert results["resumed"].pop("observations at resume", 40) == 40
        assert_close(results["resumed"], results["went on"])
        if source == target:
            assert_identical(results["resumed"], results["went on"])


@pytest.mark.parametrize("source", ["fsdp2", "ddp"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_two_ranks_is_resumed_by_one_process(
    fsdp2: Results, folder: Path, name: str, source: str
) -> None:
    resumed = rank_jobs.resume_in("alone", rank_jobs.OPTIMIZERS[name], folder / f"{source} {name}")
    assert resumed.pop("observations at resume") == 40
    assert_close(resumed, fsdp2[0]["crossing"][f"{name} from {source} to {source}"]["went on"])


@pytest.mark.parametrize("target", ["fsdp2", "ddp"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_one_process_is_resumed_by_two_ranks(
    fsdp2: Results, folder: Path, name: str, target: str
) -> None:
    resumed = fsdp2[0]["from one process"][f"{name} to {target}"]
    assert resumed.pop("observations at resume") == 40
    assert_close(resumed, fsdp2[0]["from one process"][name])
