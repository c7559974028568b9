"""Tensors for the tests of the kernels, and the one call that moves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from emo_hf.optim.kernels import build, fact
from emo_hf.optim.kernels.launch import run_elementwise
from emo_hf.optim.update import Hyperparameters
from tests.optim.kernels.references import CASES, Case

H = Hyperparameters(lr=3e-2, decay=2e-2, beta1=0.9, beta2=0.99, eps=1e-8)

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler")
NAVI, SIGN, NECO_SCALED = (
    next(case for case in CASES if str(case) == name) for name in ("emo_navi", "emo_sign", "emo_neco-scaled")
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@dataclass
class Tensors:
    """Parameters, gradients, and a list for each of their state tensors."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    scales: Tensor | None = None

    def copy(self, dtype: torch.dtype = torch.float32) -> Tensors:
        def copies(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.detach().to(dtype, copy=True) for tensor in tensors]

        return Tensors(copies(self.params), copies(self.grads), [copies(state) for state in self.states], self.scales)

    def all(self) -> list[Tensor]:
        return [*self.params, *self.grads, *(tensor for state in self.states for tensor in state)]


def tensors_for(case: Case, shapes: Sequence[Sequence[int]], seed: int = 0) -> Tensors:
    """Normal entries, and their magnitudes for state, for an elementwise kernel."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> list[Tensor]:
        return [torch.randn(tuple(shape), generator=generator) for shape in shapes]

    params, grads = normal(), normal()
    states = [[tensor.abs() if number == 1 else tensor for tensor in normal()] for number in range(case.state_tensors)]
    if case.reference.__name__ == "fact_vector":
        states = [[tensor.abs() for tensor in state] for state in states]
    return Tensors(params, grads, states, torch.rand(len(shapes), generator=generator) if case.scaled else None)


def matrices(shapes: Sequence[Sequence[int]], seed: int = 0) -> Tensors:
    """Normal entries, and sizes of rows and columns between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    params, grads = ([torch.randn(tuple(shape), generator=generator) for shape in shapes] for _ in range(2))
    rows = [torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) + 0.5 for shape in shapes]
    columns = [torch.rand(1, *shape[1:], generator=generator) + 0.5 for shape in shapes]
    return Tensors(params, grads, [rows, columns])


def move(case: Case, tensors: Tensors, h: Hyperparameters = H) -> None:
    run_elementwise(case.function, tensors.params, tensors.grads, tensors.states, h, scales=tensors.scales)


def move_matrices(tensors: Tensors, h: Hyperparameters = H) -> None:
    rows, columns = tensors.states
    fact.move_matrices(tensors.params, tensors.grads, rows, columns, h)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch set to so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_bits(one: Tensors, other: Tensors) -> None:
    for a, b in zip(one.all(), other.all(), strict=True):
        assert torch.equal(a.reshape(-1).view(torch.int32), b.reshape(-1).view(torch.int32))


def refused(
    run: Callable[[Tensors], None], tensors: Tensors, match: str, kind: type[RuntimeError] = RuntimeError
) -> None:
    """Assert that a call raises a RuntimeError which says so, and that nothing was moved."""
    before = [tensor.detach().clone() for tensor in tensors.all()]
    with pytest.raises(RuntimeError, match=match) as caught:
        run(tensors)
    assert type(caught.value) is kind
    for now, then in zip(tensors.all(), before, strict=True):
        assert torch.equal(now, then)


def run(case: Case) -> Callable[[Tensors], None]:
    return lambda tensors: move(case, tensors)


def strided(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]
