"""Sizes and values that nobody thought of: the kernels compute what the same formula in torch's float32 does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emo_hf.optim.kernels import fact
from emo_hf.optim.update import Hyperparameters
from tests.optim.kernels.common import Tensors, each_case, move, move_matrices, needs_compiler, threads
from tests.optim.kernels.references import Case, Reference
from tests.optim.kernels.references import fact as fact_reference

pytestmark = needs_compiler

NAN, INF, LARGEST = float("nan"), float("inf"), torch.finfo(torch.float32).max
VALUES = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 1e-20, 3.0, -1e3, 1e10, LARGEST, -LARGEST, INF, -INF, NAN])
ORDINARY = 9
"""So many of the values, the first, are such that none of the formulas overflows."""

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
matrix_shapes = st.lists(st.integers(1, 40), min_size=2, max_size=3).map(tuple)
numbers = st.builds(
    Hyperparameters,
    lr=st.sampled_from([0.0, 1e-3, 1.0]),
    decay=st.sampled_from([0.0, 1e-2, 1.0]),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),
    beta2=st.sampled_from([0.0, 0.99, 0.999]),
    eps=st.sampled_from([1e-8, 1e-3]),
)


def drawn(shape: tuple[int, ...], generator: torch.Generator, among: int = len(VALUES)) -> Tensor:
    return VALUES[torch.randint(among, shape, generator=generator)]


def assert_as_torch_computes(moved: Tensors, before: Tensors, reference: Reference, h: Hyperparameters) -> None:
    for i, (p, g, *state) in enumerate(zip(before.params, before.grads, *before.states, strict=True)):
        scale = None if before.scales is None else float(before.scales[i])
        p, state = reference(p, g, state, h, scale)
        torch.testing.assert_close(moved.params[i], p, rtol=1e-4, atol=1e-6, equal_nan=True)
        for ours, expected in zip(moved.states, state, strict=True):
            torch.testing.assert_close(ours[i], expected, rtol=1e-4, atol=1e-30, equal_nan=True)


@each_case
@settings(max_examples=40)
@given(st.lists(shapes, max_size=6), st.integers(0, 2**32), numbers, st.sampled_from([ORDINARY, len(VALUES)]))
def test_any_sizes_and_values(
    case: Case, shapes: list[tuple[int, ...]], seed: int, h: Hyperparameters, among: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    params, grads = ([drawn(shape, generator, among) for shape in shapes] for _ in range(2))
    states = [[drawn(shape, generator, among) for shape in shapes] for _ in range(case.state_tensors)]
    if case.reference.__name__ in ("navi", "fact_vector"):
        states[-1] = [v.abs() for v in states[-1]]
    before = Tensors(params, grads, states, torch.rand(len(shapes), generator=generator) if case.scaled else None)
    moved = before.copy()
    move(case, moved, h)
    assert_as_torch_computes(moved, before, case.reference, h)


@pytest.mark.parametrize("large", [1, 300, 10**6])
@settings(max_examples=30)
@given(st.lists(matrix_shapes, max_size=5), st.integers(0, 2**32), numbers, st.sampled_from([ORDINARY, len(VALUES)]))
def test_any_matrices(large: int, shapes: list[tuple[int, ...]], seed: int, h: Hyperparameters, among: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    params, grads = ([drawn(shape, generator, among) for shape in shapes] for _ in range(2))
    rows = [torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) for shape in shapes]
    columns = [torch.rand(1, *shape[1:], generator=generator) for shape in shapes]
    before = Tensors(params, grads, [rows, columns])
    moved = before.copy()
    with pytest.MonkeyPatch.context() as patch, threads(2):
        patch.setattr(fact, "LARGE", large)
        move_matrices(moved, h)
    assert_as_torch_computes(moved, before, fact_reference, h)
