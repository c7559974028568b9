"""Tensors that are not what their memory says: torch notes signs and zeros beside it, and others are wrapped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from emo_hf import EmoNavi, EmoOptimizer
from tests.emo_cases import assert_identical, each_optimizer, losses, lr_for, parameters

SHAPES = ((40, 30), (7,), (1,), ())
LAZY: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": lambda tensor: torch._neg_view(-tensor),
    "functional": torch._to_functional_tensor,
}


def _trained(cls: type[EmoOptimizer], change: Callable[[Tensor], Tensor] | None, where: str, **options: Any) -> list:
    """Three steps with the same numbers, kept in another way if there is a `change`."""
    params = parameters(SHAPES)
    if change and where == "parameter":
        params = [nn.Parameter(change(param.detach())) for param in params]
    optimizer = cls(params, lr=lr_for(cls, 1e-2), **options)
    for step, loss in enumerate(losses(3)):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            gradient = torch.randn(param.shape, generator=generator)
            param.grad = change(gradient) if change and where == "gradient" else gradient
            for key, value in optimizer.state[param].items() if change and where == "state" else ():
                optimizer.state[param][key] = change(value.clone())
        optimizer.observe(loss)
        optimizer.step()
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize(
    ("kind", "where", "options"),
    [
        ("negative", "gradient", {}),
        ("negative", "gradient", {"nonfinite": "propagate"}),
        ("negative", "parameter", {"native": False}),
        ("negative", "state", {}),
        ("functional", "gradient", {"native": False}),
    ],
)
@each_optimizer
def test_signs_that_are_noted_beside_the_memory_count(
    cls: type[EmoOptimizer], kind: str, where: str, options: dict[str, Any]
) -> None:
    ours, plain = _trained(cls, LAZY[kind], where, **options), _trained(cls, None, where, **options)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@each_optimizer
def test_a_zero_tensor_without_memory_is_a_gradient_of_zeros(cls: type[EmoOptimizer]) -> None:
    for native in (None, False):
        zeros = (lambda gradient: torch._efficientzerotensor(gradient.shape), torch.zeros_like)
        assert_identical(*(_trained(cls, change, "gradient", native=native) for change in zeros))


@pytest.mark.parametrize(
    "options", [{"compensate": "8bit", "state": "8bit"}, {"compensate": True}, {"maximize": True}]
)
@pytest.mark.parametrize("where", ["gradient", "parameter"])
def test_fewer_bits_know_of_signs_too(options: dict[str, Any], where: str) -> None:
    results = []
    for change in (LAZY["negative"], None):
        values = [param.detach().bfloat16() for param in parameters(((64, 128),))]
        params = [nn.Parameter(change(value) if change and where == "parameter" else value) for value in values]
        optimizer = EmoNavi(params, lr=1e-2, **options)
        for loss in losses(3):
            gradient = torch.ones(64, 128, dtype=torch.bfloat16)
            params[0].grad = change(gradient) if change and where == "gradient" else gradient
            optimizer.observe(loss)
            optimizer.step()
        results.append(params[0].detach().clone())
    torch.testing.assert_close(*results, rtol=2e-2, atol=1e-3)


@each_optimizer
def test_fake_tensors_are_stepped_without_numbers(cls: type[EmoOptimizer]) -> None:
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        param = nn.Parameter(torch.ones(4, 3))
        optimizer = cls([param], lr=1e-2)
        for _ in range(2):
            param.grad = torch.ones(4, 3)
            optimizer.observe(1.0)
            optimizer.step()
        assert param.shape == (4, 3)
