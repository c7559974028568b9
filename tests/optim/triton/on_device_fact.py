"""What the Triton kernels for matrices compute. `test_kernels.py` runs this where kernels can be launched."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from emo_hf.optim.kernels.launch import Kept
from emo_hf.optim.rules.fact import MATRICES as IMPLEMENTATIONS
from emo_hf.optim.state_keys import COLUMN_RMS, ROW_RMS
from emo_hf.optim.update import Bucket, Hyperparameters
from tests.optim.kernels.common import H, Tensors, matrices
from tests.optim.kernels.references import fact as formula
from tests.optim.triton.common import (
    DEVICE,
    LOW,
    MATRICES,
    assert_as_the_formula_says,
    counting,
    move_matrices,
    on_device,
)


@pytest.mark.parametrize("h", [H, counting()], ids=["propagate", "leave out"])
def test_matrices_move_by_the_sizes_of_rows_and_columns(h: Hyperparameters) -> None:
    before = matrices(MATRICES)
    moved = on_device(before)
    move_matrices(moved, h)
    assert_as_the_formula_says(moved, before, formula, h)


def test_what_is_not_finite_is_in_no_mean_and_stays_as_it_is() -> None:
    h = counting()
    before = matrices([(40, 260), (600, 6), (5, 6)])
    before.grads[0][3, 7], before.grads[0][39, 259] = math.nan, math.inf
    before.grads[1][:, 5] = math.nan
    before.grads[2][1] = -math.inf
    moved = on_device(before)
    move_matrices(moved, h)
    assert h.left_out is not None
    assert h.left_out.count == 2 + 600 + 6
    exact = before.copy(torch.float64)
    for i, (p, g, r, k) in enumerate(zip(exact.params, exact.grads, *exact.states, strict=True)):
        IMPLEMENTATIONS["finite"](Bucket([p], [g], [{ROW_RMS: r, COLUMN_RMS: k}]), H)
        for ours, expected in zip((moved.params[i], *(of[i] for of in moved.states)), (p, r, k), strict=True):
            torch.testing.assert_close(ours.double().cpu(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(moved.states[1][1][:, 5].cpu(), before.states[1][1][:, 5])
    assert torch.equal(moved.params[2][1].cpu(), before.params[2][1])


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("dtype", LOW)
def test_matrices_in_16_bits_are_moved_in_float32_and_rounded_once(dtype: torch.dtype, compensate: bool) -> None:
    h = counting(replace(H, lr=1e-4))
    before = matrices([(17, 5), (3, 272)])
    low, wide = on_device(before, dtype), on_device(before)
    wide.params, wide.grads = [p.float() for p in low.params], [g.float() for g in low.grads]
    low.states = [[size.clone() for size in sizes] for sizes in wide.states]
    compensation = [torch.full_like(param, 1e-4) for param in low.params] if compensate else None
    if compensation:
        for param, rest in zip(wide.params, compensation, strict=True):
            param.add_(rest)
    move_matrices(low, h, Kept(compensation))
    move_matrices(wide, h)
    for i, (param, whole) in enumerate(zip(low.params, wide.params, strict=True)):
        assert torch.equal(param, whole.to(dtype))
        if compensation:
            assert torch.equal(compensation[i], (whole - param).to(dtype))
    for ours, expected in zip(low.states, wide.states, strict=True):
        assert all(map(torch.equal, ours, expected))


def test_an_empty_matrix_keeps_its_state() -> None:
    before = matrices([(0, 5), (3, 4), (4, 0)])
    moved = on_device(before)
    move_matrices(moved, H)
    for i in (0, 2):
        assert all(torch.equal(sizes[i].cpu(), old[i]) for sizes, old in zip(moved.states, before.states, strict=True))


def test_sizes_of_another_shape_are_refused() -> None:
    moved = on_device(matrices([(3, 4)]))
    moved.states[1] = [torch.ones(3, device=DEVICE)]
    with pytest.raises(RuntimeError, match="column state 0 of 1 has number of elements 3, but its parameter needs 4"):
        move_matrices(Tensors(moved.params, moved.grads, moved.states), H)
