"""DeepSpeed ZeRO on two ranks, through the Trainer: the loss arrives, and every part of the parameters obeys it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

import emo_hf
from tests.emo_cases import assert_identical, rule_of
from tests.ranks import run_job

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

Results = list[dict[str, Any]]
EACH_STAGE = pytest.mark.parametrize("stage", [1, 2, 3])


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("deepspeed_zero", tmp_path_factory.mktemp("zero"))


@EACH_STAGE
@pytest.mark.parametrize("optim", emo_hf.FAMILY)
def test_all_ranks_have_the_same_weights_and_emotion(zero: Results, optim: str, stage: int) -> None:
    one, other = (rank.get(f"{optim} {stage}") for rank in zero)
    if one is None:
        pytest.skip("tried with another stage only")
    assert_identical(one, other)
    assert one["emotion"]["observations"] == 20


@EACH_STAGE
@pytest.mark.parametrize("optim", emo_hf.FAMILY)
def test_the_run_is_that_of_data_parallelism_without_deepspeed(zero: Results, optim: str, stage: int) -> None:
    sharded, plain = zero[0].get(f"{optim} {stage}"), zero[0].get(f"{optim} plain")
    if sharded is None or plain is None:
        pytest.skip("tried with another stage only, or another rule for flat vectors")
    assert any(c != 1.0 for c in plain["coefficients"]), "the emotion never spoke: this run shows nothing"
    assert sharded["emotion"] == pytest.approx(plain["emotion"], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(sharded["weights"], plain["weights"], rtol=1e-3, atol=1e-4)


def test_a_rule_that_looks_at_whole_parameters_says_that_they_have_been_flattened(zero: Results) -> None:
    for cls in (cls for name, cls in emo_hf.FAMILY.items() if f"{name} 2" in zero[0]):
        flattened = not rule_of(cls).takes_parts()
        assert (zero[0]["output"].count(f"{cls.__name__} under DeepSpeed") >= 1) is flattened
        assert not zero[1]["output"].count(f"{cls.__name__} under DeepSpeed")


@pytest.mark.parametrize("stage", [3])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(zero: Results, stage: int) -> None:
    for rank in zero:
        resumed, whole = rank[f"resumed {stage}"], rank[f"emonavi {stage}"]
        assert resumed["emotion"] == whole["emotion"]
        assert_identical(resumed["weights"], whole["weights"])


@pytest.mark.parametrize(("stage", "optim"), [(2, "emonavi"), (3, "emolynx")])
def test_offload_keeps_the_optimizer_and_takes_the_same_steps(zero: Results, optim: str, stage: int) -> None:
    offloaded, here = (zero[0][f"{optim}{where} {stage}"] for where in (" offloaded", ""))
    assert offloaded["optimizer"] == emo_hf.FAMILY[optim].__name__
    assert offloaded["emotion"] == pytest.approx(here["emotion"], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(offloaded["weights"], here["weights"], rtol=1e-3, atol=1e-4)
    assert zero[0]["output"].count(f"in the place of {offloaded['optimizer']}") == 1
    assert "in the place of" not in zero[1]["output"]
