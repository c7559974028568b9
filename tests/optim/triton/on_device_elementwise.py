"""What the elementwise Triton kernels compute. `test_kernels.py` runs this where kernels can be launched."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from emo_hf.optim.kernels.checks import UnfitError
from emo_hf.optim.kernels.gpu import tables
from emo_hf.optim.kernels.launch import Kept
from emo_hf.optim.precision import low
from emo_hf.optim.rules.neco import Neco
from emo_hf.optim.state_keys import EXP_AVG
from emo_hf.optim.update import Bucket, Hyperparameters
from tests.optim.kernels.common import NAVI, H, Tensors, strided, tensors_for
from tests.optim.kernels.references import Case
from tests.optim.triton.common import (
    DEVICE,
    GPU_CASES,
    LOW,
    PIECE,
    SHAPES,
    assert_as_the_formula_says,
    counting,
    move,
    on_device,
)

each_case = pytest.mark.parametrize("case", GPU_CASES, ids=str)


@each_case
@pytest.mark.parametrize("h", [H, counting()], ids=["propagate", "leave out"])
def test_a_kernel_computes_its_formula_for_many_tensors_at_once(case: Case, h: Hyperparameters) -> None:
    before = tensors_for(case, SHAPES)
    moved = on_device(before)
    move(case, moved, h)
    assert_as_the_formula_says(moved, before, case.reference, h)


@each_case
def test_elements_that_are_not_finite_keep_what_they_had_and_are_counted(case: Case) -> None:
    h, bad = counting(), [math.nan, math.inf, -math.inf]
    before = tensors_for(case, [(40,), (PIECE + 3,), (PIECE,)])
    before.grads[0][3], before.grads[1][PIECE], before.grads[2][17] = bad[0], bad[1], bad[2]
    moved = on_device(before)
    move(case, moved, h)
    assert_as_the_formula_says(moved, before, case.reference, h)
    for i, at in enumerate((3, PIECE, 17)):
        kept = [moved.params, *moved.states]
        assert all(new[i][at] == old[i][at] for new, old in zip(kept, [before.params, *before.states], strict=True))
    assert h.left_out is not None
    assert h.left_out.count == 3


@each_case
@pytest.mark.parametrize("dtype", LOW)
def test_tensors_in_16_bits_are_moved_in_float32_and_rounded_once(case: Case, dtype: torch.dtype) -> None:
    h = counting()
    low = on_device(tensors_for(case, [(7,), (PIECE + 1,)]), dtype)
    wide = on_device(low)
    move(case, low, h)
    move(case, wide, h)
    for ours, expected in zip(low.all(), wide.all(), strict=True):
        assert torch.equal(ours, expected.to(dtype))


@each_case
@pytest.mark.parametrize("dtype", LOW)
def test_compensation_keeps_what_rounding_took(case: Case, dtype: torch.dtype) -> None:
    h = counting(replace(H, lr=1e-5, decay=0.0))
    before = tensors_for(case, [(7,), (PIECE + 1,)])
    before.grads[1][5] = math.nan
    low, wide = on_device(before, dtype), on_device(before)
    low.states, low.grads = [[t.clone() for t in of_kind] for of_kind in wide.states], wide.grads
    wide.params = [param.float() for param in low.params]
    compensation = [torch.full_like(param, 1e-4) for param in low.params]
    for param, rest in zip(wide.params, compensation, strict=True):
        param.add_(rest)
    spoilt = low.params[1][5].clone(), compensation[1][5].clone()
    move(case, low, h, Kept(compensation))
    move(case, wide, h)
    for param, rest, whole in zip(low.params, compensation, wide.params, strict=True):
        finite = torch.ones_like(param, dtype=torch.bool)
        finite.view(-1)[5] = param.numel() == 7
        assert torch.equal(param[finite], whole.to(dtype)[finite])
        assert torch.equal(rest[finite], (whole - whole.to(dtype)).to(dtype)[finite])
    assert (low.params[1][5], compensation[1][5]) == spoilt


def test_tensors_may_begin_anywhere_and_lie_in_any_order() -> None:
    before = tensors_for(NAVI, [(PIECE + 1,), (6, 5, 4, 3)])
    moved = on_device(before)
    for of_kind in (moved.params, moved.grads, *moved.states):
        of_kind[0] = torch.cat([of_kind[0][:1], of_kind[0]])[1:]
        of_kind[1] = of_kind[1].to(memory_format=torch.channels_last)
    move(NAVI, moved, H)
    assert_as_the_formula_says(moved, before, NAVI.reference, H)


def test_a_table_is_kept_while_the_tensors_stay_where_they_are() -> None:
    moved = on_device(tensors_for(NAVI, [(5,), (9,)]))
    move(NAVI, moved, H)
    misses = tables._table.cache_info().misses
    move(NAVI, moved, H)
    assert tables._table.cache_info().misses == misses
    moved.grads[1] = torch.cat([moved.grads[1]] * 2)[:9]
    move(NAVI, moved, H)
    assert tables._table.cache_info().misses == misses + 1


def test_what_does_not_fit_is_refused_before_anything_moves() -> None:
    for spoil in ("strided", "short", "wide"):
        moved = on_device(tensors_for(NAVI, [(5,), (6, 2)]))
        moved.grads[1] = {
            "strided": strided(moved.grads[1]),
            "short": moved.grads[1][:5].clone(),
            "wide": moved.grads[1].double(),
        }[spoil]
        before = [param.clone() for param in moved.params]
        with pytest.raises(RuntimeError, match=r"gradient|lie in memory alike") as caught:
            move(NAVI, moved, H)
        assert (type(caught.value) is UnfitError) is (spoil != "short")
        assert all(map(torch.equal, moved.params, before))


def test_a_scale_is_the_whole_tensors_where_torch_moves_what_the_kernels_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(low, "ELEMENTS_IN_CACHES", 8)
    monkeypatch.setattr(low, "ELEMENTS_ON_DEVICE", 8)
    made = on_device(tensors_for(NAVI, [(64,)]), torch.bfloat16)
    by_size = replace(counting(), scalar=0.3)
    moved = []
    for dtype in (torch.float32, torch.float64):
        p, g, m = (tensors[0].clone() for tensors in (made.params, made.grads, made.states[0]))
        Neco.implementations["triton"](Bucket([p], [g], [{EXP_AVG: m.to(dtype)}]), by_size)
        moved.append(p)
    torch.testing.assert_close(*moved, rtol=1e-2, atol=1e-3)


def test_a_step_counts_as_an_in_place_change() -> None:
    param = torch.nn.Parameter(torch.ones(3, device=DEVICE))
    squared = (param * param).sum()
    sign = next(case for case in GPU_CASES if case.function == "emo_sign")
    move(sign, Tensors([param], [torch.ones(3, device=DEVICE)], []), H)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()
