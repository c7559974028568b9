"""A rank whose batch is empty now and then: the emotion stays finite, the same on all ranks, and training goes on."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.emo_cases import assert_identical
from tests.rank_jobs.uneven import OF_EACH_LAW
from tests.ranks import run_job

pytestmark = pytest.mark.long

STEPS, EMPTY = 12, {0, 3, 4, 7}  # of either rank, as in the job


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_job("uneven", tmp_path_factory.mktemp("uneven"))


@pytest.mark.parametrize("loss_of", ["nan", "zero", "none"])
@pytest.mark.parametrize("optim", OF_EACH_LAW.values())
def test_with_an_empty_batch_on_one_rank_all_ranks_feel_the_same_and_go_on(
    optim: str, loss_of: str, results: list[dict[str, Any]]
) -> None:
    one, other = (rank[f"{optim} {loss_of}"]["after"] for rank in results)
    assert_identical(one, other)
    assert len(one) == STEPS
    skipped = 0
    for step, after in enumerate(one):
        skipped += loss_of == "nan" and step in EMPTY
        emotion = after["emotion"]
        assert all(math.isfinite(value) for value in emotion.values())
        assert (emotion["observations"], emotion["skipped"]) == (step + 1 - skipped, skipped)
        assert after["weight"].isfinite().all()
    weights = [after["weight"] for after in one]
    moved = [not torch.equal(before, after) for before, after in pairwise(weights)]
    assert all(moved), "training goes on at every step"


def test_a_rank_that_has_nothing_leaves_the_loss_of_the_other_as_it_is(results: list[dict[str, Any]]) -> None:
    """An empty batch whose loss is left out does not count; one whose loss is 0 counts as a loss of 0."""
    for optim in OF_EACH_LAW.values():
        left_out, zero = (results[0][f"{optim} {kind}"]["after"][0]["emotion"]["short"] for kind in ("none", "zero"))
        assert left_out == pytest.approx(2.0 * zero)


def test_in_the_trainer_a_rank_with_nothing_to_learn_from_makes_the_step_neutral_for_both(
    results: list[dict[str, Any]],
) -> None:
    one, other = (rank["trainer"] for rank in results)
    assert_identical((one["weights"], one["emotion"]), (other["weights"], other["emotion"]))
    assert all(weight.isfinite().all() for weight in one["weights"])
    assert (one["emotion"]["observations"], one["emotion"]["skipped"]) == (STEPS - len(EMPTY), len(EMPTY))
    for step, line in enumerate(one["lines"]):
        assert all(math.isfinite(value) for value in line.values())
        assert line["emo/skipped"] == sum(empty <= step for empty in EMPTY)
        assert step not in EMPTY or line["emo/coefficient_min"] == line["emo/coefficient_max"] == 1.0
