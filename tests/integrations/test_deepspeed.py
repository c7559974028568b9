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


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("deepspeed_zero", tmp_path_factory.mktemp("zero"))


@pytest.mark.parametrize("optim", emo_hf.FAMILY)
def test_all_ranks_have_the_same_weights_and_emotion_and_rules_that_read_whole_parameters_say_so(
    zero: Results, optim: str
) -> None:
    one, other = (rank.get(optim) for rank in zero)
    if one is None:
        pytest.skip("its state is of another's kind")
    assert_identical(one, other)
    assert one["emotion"]["observations"] == len(one["coefficients"]) == 12
    cls = emo_hf.FAMILY[optim]
    flattened = not rule_of(cls).takes_parts()
    assert (zero[0]["output"].count(f"{cls.__name__} under DeepSpeed") >= 1) is flattened
    assert not zero[1]["output"].count(f"{cls.__name__} under DeepSpeed")


@pytest.mark.parametrize("optim", [*emo_hf.FAMILY, "emonavi offloaded", "emolynx offloaded"])
def test_the_run_is_that_of_data_parallelism_without_deepspeed(zero: Results, optim: str) -> None:
    name, _, offloaded = optim.partition(" ")
    sharded, plain = zero[0].get(optim), zero[0].get(f"{name} plain")
    if sharded is None or plain is None:
        pytest.skip("its state is of another's kind, or its rule another for flat vectors")
    assert any(c != 1.0 for c in plain["coefficients"]), "the emotion never spoke: this run shows nothing"
    assert sharded["emotion"] == pytest.approx(plain["emotion"], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(sharded["weights"], plain["weights"], rtol=1e-3, atol=1e-4)
    assert sharded["optimizer"] == emo_hf.FAMILY[name].__name__
    if offloaded:  # the optimizer that was asked for is kept, which one rank says
        assert [rank["output"].count(f"in the place of {sharded['optimizer']}") for rank in zero] == [1, 0]


def test_every_stage_was_tried(zero: Results) -> None:
    assert {result["stage"] for name, result in zero[0].items() if name != "output"} == {None, 1, 2, 3}


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(zero: Results) -> None:
    for rank in zero:
        assert rank["resumed"]["emotion"] == rank["emonavi"]["emotion"]
        assert_identical(rank["resumed"]["weights"], rank["emonavi"]["weights"])
