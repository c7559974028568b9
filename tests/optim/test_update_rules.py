"""Every implementation of every rule against the slow reference, on random shapes, layouts, dtypes and groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emo_hf.optim import EmoOptimizer
from tests.emo_cases import assert_identical, each_implementation, make
from tests.reference.optimizer import ReferenceGroup, ReferenceOptimizer
from tests.reference.rules import Options

# What the parameters may be off after some steps of rates up to 0.02. A step of EmoNavi at β1 = 0 is 32·lr long, and
# every operation rounds to the precision of the dtype; bfloat16 knows 3 digits, float16 4.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 0.02, torch.bfloat16: 0.15}
LAYOUTS = ["plain", "transposed", "strided", "channels_last"]
SHAPES = [(), (1,), (7,), (0,), (3, 0), (1, 7), (7, 1), (4, 3), (33, 17), (2, 3, 4), (2, 3, 2, 2), (5, 1, 3, 3)]


@dataclass(frozen=True)
class TensorCase:
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    gradient_layout: str | None  # None: as the parameter's


@dataclass(frozen=True)
class GroupCase:
    tensors: list[TensorCase]
    options: dict[str, Any]


@dataclass(frozen=True)
class Case:
    groups: list[GroupCase]
    losses: list[float | None]
    seed: int
    missing: list[int] = field(default_factory=list)  # numbers of gradients that are None


def tensor_cases(dtypes: list[torch.dtype]) -> st.SearchStrategy[TensorCase]:
    return st.builds(
        TensorCase,
        shape=st.sampled_from(SHAPES),
        dtype=st.sampled_from(dtypes),
        layout=st.sampled_from(LAYOUTS),
        gradient_layout=st.sampled_from([None, *LAYOUTS]),
    )


def option_sets() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "lr": st.sampled_from([1e-2, 2e-2, 3e-3, 0.0]),
            "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
            "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.99), (0.95, 0.9), (0.8, 0.98)]),
            "eps": st.sampled_from([1e-8, 1e-4]),
            "use_shadow": st.booleans(),
            "maximize": st.booleans(),
        }
    )


def cases(dtypes: list[torch.dtype]) -> st.SearchStrategy[Case]:
    group = st.builds(GroupCase, tensors=st.lists(tensor_cases(dtypes), min_size=1, max_size=4), options=option_sets())
    loss = st.none() | st.sampled_from([2.0, 1.9, 1.5, 3.0, 0.7, 9.0, 0.0, -1.0, float("nan")])
    return st.builds(
        Case,
        groups=st.lists(group, min_size=1, max_size=3),
        losses=st.lists(loss, min_size=1, max_size=6),
        seed=st.integers(0, 2**16),
        missing=st.lists(st.integers(0, 20), max_size=4),
    )


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values, arranged differently in memory."""
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and values.dim() >= 1:
        holes = torch.full((*values.shape[:-1], 2 * values.shape[-1]), 77.0, dtype=values.dtype)
        holes[..., ::2] = values
        return holes[..., ::2]
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values.clone()


def random_values(case: TensorCase, generator: torch.Generator, *, gradient: bool = False) -> Tensor:
    values = torch.randn(case.shape, generator=generator, dtype=torch.float64)
    if gradient:
        # Not too small: float16 has no room for the squares of small gradients.
        values = values.sign() * (0.25 + values.abs())
    return values.to(case.dtype)


def compare(cls: type[EmoOptimizer], implementation: str, case: Case) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    params = [
        [nn.Parameter(laid_out(random_values(tensor, generator), tensor.layout)) for tensor in group.tensors]
        for group in case.groups
    ]
    optimizer = make(
        cls, [{"params": row, **g.options} for row, g in zip(params, case.groups, strict=True)], implementation
    )
    reference = ReferenceOptimizer(
        cls.__name__, [reference_group(g, row) for g, row in zip(case.groups, params, strict=True)]
    )
    count = 0
    for loss in case.losses:
        gradients: list[list[Tensor | None]] = []
        for group, row in zip(case.groups, params, strict=True):
            gradients.append([])
            for tensor, param in zip(group.tensors, row, strict=True):
                values = random_values(tensor, generator, gradient=True)
                gradient = None if count in case.missing else laid_out(values, tensor.gradient_layout or tensor.layout)
                gradients[-1].append(gradient)
                param.grad = gradient
                count += 1
        kept = [[None if g is None else g.clone() for g in row] for row in gradients]
        if loss is not None:
            optimizer.observe(loss)
        optimizer.step()
        reference.step(loss, kept)
        assert_identical(gradients, kept)  # a step leaves the gradients as they were
    for index, row in enumerate(params):
        for param, expected, state in zip(row, reference.groups[index].params, reference.states[index], strict=True):
            keep = ~state.get("doubtful", torch.zeros_like(expected, dtype=torch.bool))
            tolerance = TOLERANCE[param.dtype]
            torch.testing.assert_close(param.detach().double()[keep], expected[keep], atol=tolerance, rtol=tolerance)


def reference_group(group: GroupCase, params: list[nn.Parameter]) -> ReferenceGroup:
    o = group.options
    numbers = Options(lr=o["lr"], wd=o["weight_decay"], beta1=o["betas"][0], beta2=o["betas"][1], eps=o["eps"])
    return ReferenceGroup(list(params), numbers, use_shadow=o["use_shadow"], maximize=o["maximize"])


@pytest.mark.filterwarnings("ignore:.*without a loss:RuntimeWarning")
@each_implementation
@settings(max_examples=60)
@given(case=cases([torch.float32, torch.float64]))
def test_every_implementation_agrees_with_the_reference(
    cls: type[EmoOptimizer], implementation: str, case: Case
) -> None:
    compare(cls, implementation, case)


@pytest.mark.filterwarnings("ignore:.*without a loss:RuntimeWarning")
@each_implementation
@settings(max_examples=40)
@given(case=cases([torch.bfloat16, torch.float16, torch.float32]))
def test_every_implementation_agrees_with_the_reference_as_far_as_half_precision_reaches(
    cls: type[EmoOptimizer], implementation: str, case: Case
) -> None:
    compare(cls, implementation, case)


@each_implementation
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_coefficient_of_exactly_zero_leaves_only_the_weight_decay(
    cls: type[EmoOptimizer], implementation: str, weight_decay: float
) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = make(cls, [param], implementation, lr=0.1, weight_decay=weight_decay)
    param.grad = torch.full((3, 2), 3.0)
    optimizer.observe(-1.0)
    optimizer.step()
    before = param.detach().clone()
    optimizer.observe(-5.0)  # below zero the denominator is its floor, so that σ is exactly 1
    optimizer.step()
    assert optimizer.emotion.coefficient == 0.0
    torch.testing.assert_close(param.detach(), before * (1 - 0.1 * weight_decay))


@each_implementation
def test_a_parameter_without_a_gradient_is_left_alone_and_gets_no_state(
    cls: type[EmoOptimizer], implementation: str
) -> None:
    idle, moved = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = make(cls, [idle, moved], implementation, weight_decay=0.5, use_shadow=True)
    moved.grad = torch.ones(3)
    optimizer.observe(1.0)
    optimizer.step()
    assert torch.equal(idle.detach(), torch.ones(3))
    assert not torch.equal(moved.detach(), torch.ones(3))
    assert list(optimizer.state) == [moved]


@each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_gradients_of_zero_leave_the_parameters_finite(
    cls: type[EmoOptimizer], implementation: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """As LoRA's A has them at the first step, because B starts at zero."""
    param = nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = make(cls, [param], implementation)
    param.grad = torch.zeros_like(param)
    optimizer.observe(1.0)
    optimizer.step()
    torch.testing.assert_close(param.detach().double(), torch.ones(shape).double() * (1 - 1e-5), atol=1e-2, rtol=0.0)


@each_implementation
def test_parameters_of_different_dtypes_may_share_a_group(cls: type[EmoOptimizer], implementation: str) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32]
    params = [nn.Parameter(torch.ones(2, 3, dtype=dtype)) for dtype in dtypes]
    optimizer = make(cls, params, implementation, lr=0.01)
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    optimizer.observe(1.0)
    optimizer.step()
    assert [param.dtype for param in params] == dtypes
    for param in params:
        torch.testing.assert_close(param.double(), params[2], atol=1e-2, rtol=0.0)
    assert all(not torch.equal(param, torch.ones_like(param)) for param in params)
