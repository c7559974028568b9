"""The Trainer's checkpoints of two ranks are resumed by one process, and the reverse: the emotion goes along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from tests.emo_cases import assert_identical
from tests.rank_jobs.trainer_checkpoints import OPTIMIZERS, SAVED_AT, STEPS, train
from tests.ranks import run_job

pytestmark = pytest.mark.long

Result = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crossing")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Result]:
    emo_hf.register()
    return {optim: train(folder / f"alone {optim}", optim=optim) for optim in OPTIMIZERS}


@pytest.fixture(scope="module")
def two(folder: Path, alone: dict[str, Result]) -> list[Result]:
    return run_job("trainer_checkpoints", folder / "two", share=False)


def assert_goes_on(resumed: Result, source: Result, target: Result) -> None:
    """The resumed run begins with the source's emotion, and ends as a run that was never interrupted."""
    assert source["at save"]["observations"] == SAVED_AT
    assert resumed["at begin"] == source["at save"]
    assert resumed["felt"][0] == pytest.approx(source["felt"][SAVED_AT], rel=1e-5)
    assert len(resumed["felt"]) == STEPS - SAVED_AT
    for whole in (source, target):
        assert any(abs(s) > 0.125 for s in whole["scalars"][SAVED_AT:]), "the emotion never spoke: this shows nothing"
        assert resumed["coefficients"] == pytest.approx(whole["coefficients"], rel=1e-3)
        assert resumed["emotion"] == pytest.approx(whole["emotion"], rel=1e-4, abs=1e-5)
        assert resumed["memory"] == pytest.approx(whole["memory"], rel=1e-3)
        torch.testing.assert_close(resumed["weights"], whole["weights"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_checkpoint_of_two_ranks_is_resumed_by_one_process_and_one_of_one_process_by_two_ranks(
    alone: dict[str, Result], two: list[Result], folder: Path, tmp_path: Path, optim: str
) -> None:
    went_on = two[0][f"{optim} went on"]
    checkpoint = folder / "two" / f"{optim} went on" / f"checkpoint-{SAVED_AT}"
    assert_goes_on(train(tmp_path, optim=optim, checkpoint=checkpoint), source=went_on, target=alone[optim])
    one, other = (rank[f"{optim} resumed"] for rank in two)
    assert_identical(one, other)
    assert_goes_on(one, source=alone[optim], target=went_on)
