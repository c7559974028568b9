"""Shards on two ranks: offloaded, stepped in backward, and in 8 bits, which go wherever they are taken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from emo_hf.optim.precision import blocks
from emo_hf.optim.precision.eight_bits import BLOCK, SIZES, decode, is_eight_bit, join
from emo_hf.optim.sharding import local_elements, place_of_shard
from emo_hf.optim.state_keys import COMPENSATION, EXP_AVG, EXP_AVG_SQ
from tests.emo_cases import assert_identical
from tests.rank_jobs import shards as rank_jobs
from tests.ranks import run_job, shared_folder

Results = list[dict[str, Any]]
ODD = 2
"""Which of the parameters, in the order of an outcome, is the odd matrix: the first group begins with the third."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder("shards", tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Results:
    return run_job("shards", folder)


@pytest.mark.long
@pytest.mark.parametrize("name", ["EmoNavi", "EmoFact"])
def test_offloaded_shards_and_steps_in_backward_change_nothing_and_go_on_from_a_checkpoint(
    ranks: Results, name: str
) -> None:
    for rank in ranks:
        plain = rank["offloaded"][name]["plain"]
        assert plain["whole"]["emotion"]["observations"] == 10
        for run in rank["offloaded"][name].values():
            assert_identical(run["whole"], plain["whole"])
            assert_identical(run["resumed"], run["whole"])


@pytest.mark.long
def test_steps_in_backward_refuse_ranks_that_average_them_after_backward(ranks: Results) -> None:
    for rank in ranks:
        assert "DistributedDataParallel averages the gradients" in rank["refused"]["model"]
        assert "several ranks share one emotion" in rank["refused"]["ranks"]
        assert rank["refused"]["local"] == 1


def exact(weight: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A weight with what rounding took from it."""
    correction = state.get(COMPENSATION)
    if correction is None:
        return weight.float()
    return join(weight, correction) if is_eight_bit(correction) else weight.float() + correction


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[Tensor]:
    """How far the averages of a parameter are from others, as a share of the largest."""
    for key in (EXP_AVG, EXP_AVG_SQ):
        here, there = (decode(s[key], s[key + SIZES]) if key + SIZES in s else s[key].float() for s in (one, other))
        yield (here - there).abs() / there.abs().amax().clamp(min=1e-12)


def assert_close(one: dict[str, Any], other: dict[str, Any], *, odd: bool) -> None:
    """Gradients that were summed in another order, and rounded by other chances, have led to the same place.

    It is told by the distance from where the model began.
    """
    params = list(rank_jobs.model(odd=odd).parameters())
    for i, first in enumerate(params[2:] + params[:2]):
        here, there = (exact(each["weights"][i], each["state"][i]) for each in (one, other))
        assert float((here - there).norm()) < 0.05 * float((there - first.detach()).norm())
        assert all(float(difference.mean()) < 0.02 for difference in differences(one["state"][i], other["state"][i]))
    assert one["emotion"] == pytest.approx(other["emotion"], rel=1e-2, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", rank_jobs.RUNS)
def test_by_equal_gradients_shards_and_whole_tensors_come_to_the_same_codes_to_the_last_bit(
    ranks: Results, name: str
) -> None:
    for rank in ranks:
        results = dict(rank["same_gradients"][name])
        alone = results.pop("alone")
        for dealt in results.values():
            for of in rank_jobs.SHAPES:
                kept = dealt["state"][of]
                in_codes = of in rank_jobs.DEALT_IN_8_BITS and "floats" not in name
                assert is_eight_bit(kept[EXP_AVG]) is in_codes
                if is_eight_bit(alone["state"][of][EXP_AVG]) is in_codes:
                    assert_identical(kept, alone["state"][of])
                    assert torch.equal(dealt["weights"][of], alone["weights"][of])


@pytest.mark.long
@pytest.mark.parametrize("name", rank_jobs.WITH_SUMS)
def test_rules_with_sums_over_whole_parameters_move_shards_as_whole_tensors(ranks: Results, name: str) -> None:
    results = [rank["same_gradients"][name] for rank in ranks]
    assert_identical(results[0]["by rows"], results[1]["by rows"])
    dealt, alone = results[0]["by rows"], results[0]["alone"]
    for of in (*rank_jobs.DEALT_IN_8_BITS, "small"):
        one, other = (exact(run["weights"][of], run["state"][of]) for run in (dealt, alone))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        low, same_low = (run["state"][of][COMPENSATION] for run in (dealt, alone))
        assert float((low != same_low).float().mean()) < 0.1  # chance goes by the place in the whole tensor


@pytest.mark.long
def test_what_is_dealt_out_by_columns_keeps_floats_and_its_correction_8_bits(ranks: Results) -> None:
    one, other = (rank["same_gradients"]["by columns"] for rank in ranks)
    assert_identical(one, other)
    for of, state in one["dealt"]["state"].items():
        assert state[EXP_AVG].dtype is torch.float32
        assert state[COMPENSATION].dtype is torch.int8
        dealt, alone = (exact(one[kind]["weights"][of], one[kind]["state"][of]) for kind in ("dealt", "alone"))
        torch.testing.assert_close(dealt, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_two_ranks_in_8_bits_train_as_one_process_does_offloaded_and_in_backward_too(ranks: Results) -> None:
    one, other = (rank["in_8_bits"] for rank in ranks)
    for kind in ("plain", "offloaded", "in backward"):
        assert_identical(one[kind], one["plain"])
        assert_identical(other[kind], one["plain"])
    assert_close(one["plain"], one["alone"], odd=True)


@pytest.mark.long
def test_one_line_of_log_says_what_keeps_floats(ranks: Results) -> None:
    one, other = (rank["in_8_bits"]["said"] for rank in ranks)
    assert other == []
    (said,) = one
    assert said.startswith(
        "EmoNavi: state='8bit': 1 of 2 large parameters of a group (32.8% of their elements) keep float32 state"
    )
    assert "one of shape (500, 9) dealt out as (Shard(dim=0),) over (2,) ranks" in said


@pytest.mark.long
def test_a_run_in_8_bits_goes_on_from_its_state_dict_to_the_last_bit(ranks: Results) -> None:
    for rank in ranks:
        for kind in ("sharded", "full", "from rank 0"):
            assert_identical(rank["resumed"][kind], rank["resumed"]["went on"])


@pytest.mark.long
def test_codes_are_dealt_out_anew_to_another_number_of_ranks(ranks: Results, folder: Path) -> None:
    for rank in ranks:
        results = rank["resharded"]
        for kind, saved in results["saved"].items():
            assert_identical(results["resumed"][kind]["resumed"], saved)
        assert_identical(results["resumed"]["two ranks"]["went on"], results["went on"])
        for other in results["refused"]:
            assert "numbers of 8 bits have become floats" in other["said"]
    alone = rank_jobs.resume_from(folder / "two ranks", rank_jobs.model(odd=False), emo_sync="local")
    assert_identical(alone["resumed"], ranks[0]["resharded"]["saved"]["two ranks"])
    assert_close(alone["went on"], ranks[0]["resharded"]["went on"], odd=False)


@pytest.mark.long
def test_sharded_states_cross_from_one_way_of_keeping_them_to_another(ranks: Results) -> None:
    one, other = (rank["crossing"] for rank in ranks)
    assert_identical(one, other)
    for crossed in one.values():
        assert crossed["sharded"]
        assert crossed["trains"]
        for saved, loaded in zip(crossed["saved"]["state"], crossed["loaded"]["state"], strict=True):
            assert all(float(difference.max()) < 0.0625 for difference in differences(loaded, saved))
    assert is_eight_bit(one["floats to 8 bits"]["loaded"]["state"][0][EXP_AVG])
    assert one["8 bits to floats"]["loaded"]["state"][0][EXP_AVG].dtype is torch.bfloat16


@pytest.mark.long
def test_full_states_go_to_one_process_and_back_where_a_matrix_is_kept_otherwise(ranks: Results) -> None:
    one, other = (rank["to_and_from_one_process"] for rank in ranks)
    assert_identical(one, other)
    for there, here in (("shards", "to alone"), ("alone", "to shards")):
        for i, (saved, loaded) in enumerate(zip(one[there]["state"], one[here]["state"], strict=True)):
            if i == ODD:
                assert is_eight_bit(saved[EXP_AVG]) is (there == "alone")
                assert is_eight_bit(loaded[EXP_AVG]) is (there == "shards")
                assert all(float(difference.max()) < 0.0625 for difference in differences(loaded, saved))
            else:
                assert_identical(loaded, saved)
    assert "or load a full state dict on each rank, which is brought over" in one["said"]


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((33, 256), (33, 1)), ((7, 2, 384), (7, 3)), ((64, 96), (8, 3)), ((8192,), (32, 1)), ((63, 96), (24,))],
)
def test_sizes_have_the_rows_of_their_tensor_where_a_block_ends_with_some_row(
    shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    assert blocks.shape_of_sizes(shape) == sizes
    assert math.prod(sizes) == -(-math.prod(shape) // BLOCK)


@pytest.fixture(params=range(8))
def mesh(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A mesh of 4 by 2 ranks, as one of them sees it; nothing is exchanged in it."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=8)
    yield init_device_mesh("cpu", (4, 2))
    dist.destroy_process_group()


def test_a_shard_knows_its_place_in_the_whole_tensor(mesh: Any) -> None:
    for deal in ([Shard(0), Replicate()], [Replicate(), Shard(0)], [Shard(0), Shard(0)]):
        for rows in (16, 13, 3):
            whole = torch.arange(rows * 512).view(rows, 512)
            dealt = distribute_tensor(whole, mesh, deal, src_data_rank=None)
            own = local_elements(dealt).flatten()
            if own.numel():
                assert torch.equal(own, torch.arange(own.numel()) + place_of_shard(dealt))
            assert blocks.are_whole(dealt)
            assert local_elements(blocks.sizes_for(dealt)).numel() == own.numel() // BLOCK


WHOLE: list[tuple[tuple[int, ...], list[Any], bool]] = [
    ((64, 96), [Shard(0), Replicate()], True),  # 16 rows each, of which 8 end where a block does
    ((64, 96), [Shard(0), Shard(0)], True),
    ((48, 96), [Shard(0), Replicate()], False),  # 12 rows each
    ((64, 256), [Shard(0), Shard(1)], False),
    ((64, 256), [Replicate(), Replicate()], True),
    ((63, 96), [Replicate(), Replicate()], False),
    ((8 * 256,), [Shard(0), Shard(0)], True),
    ((4 * 256,), [Shard(0), Shard(0)], False),
]


@pytest.mark.parametrize("mesh", [5], indirect=True)
def test_blocks_are_whole_where_each_shard_is_a_run_of_them(mesh: Any) -> None:
    for shape, deal, whole in WHOLE:
        dealt = distribute_tensor(torch.zeros(shape), mesh, deal, src_data_rank=None)
        assert blocks.are_whole(dealt) is whole, (shape, deal)
