"""Loops that other scripts write around a step in backward, with the very calls that they make.

Hooks as those of `--fused_backward_pass` of sd-scripts and musubi-tuner call `optimizer.step_param(param, group)` and
drop the gradient; nobody calls `optimizer.step()`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import emo_hf
from emo_hf import EmoFact, EmoNavi, EmoOptimizer
from tests.emo_cases import assert_identical, snapshot

STEPS = 8

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def build(cls: type[EmoOptimizer], **options: Any) -> tuple[nn.Sequential, EmoOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 2e-3}]
    return model, cls(groups, lr=1e-2, **options)


def batch(step: int) -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(step))


def trained(cls: type[EmoOptimizer], **options: Any) -> EmoOptimizer:
    """The optimizer of a loop that steps by itself; with steps in backward no gradient is left."""
    model, optimizer = build(cls, **options)
    accelerator = Accelerator(cpu=True)
    model, prepared = accelerator.prepare(model, optimizer)
    for step in range(STEPS):
        accelerator.backward(model(batch(step)).square().mean())
        assert all((param.grad is None) == bool(options) for param in model.parameters())
        prepared.step()
        prepared.zero_grad(set_to_none=True)
    return optimizer


@pytest.mark.parametrize("cls", [EmoNavi, EmoFact])
def test_scripts_whose_hooks_call_step_param_and_those_with_a_step_of_their_own_take_ordinary_steps(
    cls: type[EmoOptimizer],
) -> None:
    model, optimizer = build(cls)
    accelerator = Accelerator(cpu=True)
    step, step_param = optimizer.step, optimizer.step_param  # taken before prepare and put on what it returns
    model, prepared = accelerator.prepare(model, optimizer)
    prepared.step, prepared.step_param = step, step_param
    for param_group in prepared.param_groups:
        for parameter in param_group["params"]:

            def hook(tensor: torch.Tensor, param_group: dict[str, Any] = param_group) -> None:
                prepared.step_param(tensor, param_group)
                tensor.grad = None

            parameter.register_post_accumulate_grad_hook(hook)
    for number in range(STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(model(batch(number)).square().mean())
            assert not any(param.grad is not None for param in model.parameters())
    assert optimizer.emotion.observations == STEPS
    ordinary = snapshot(trained(cls))
    assert_identical(snapshot(optimizer), ordinary)
    assert_identical(snapshot(trained(cls, step_in_backward=True)), ordinary)


def test_a_new_loss_is_a_new_step_though_other_parameters_move_in_it() -> None:
    runs = []
    for fused in (False, True):
        params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
        optimizer = EmoNavi(params, lr=0.1)
        for step in range(STEPS):
            param = params[step % 2]  # as where experts are chosen
            optimizer.observe(1.0 + step % 3)
            (param * param).sum().backward()
            if fused:
                optimizer.step_param(param)
            else:
                optimizer.step()
            param.grad = None
        assert optimizer.emotion.observations == STEPS
        runs.append(snapshot(optimizer))
    assert_identical(*runs)


def test_strange_parameters_and_accumulation_by_accelerate_are_refused() -> None:
    model, optimizer = build(EmoNavi)
    other = nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    optimizer.observe(1.0)
    with pytest.raises(ValueError, match="the parameter is not among those of this EmoNavi"):
        optimizer.step_param(other, optimizer.param_groups[0])
    model, optimizer = build(EmoNavi)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, prepared = accelerator.prepare(model, optimizer)
    emo_hf.step_in_backward(model, prepared)
    before = [param.detach().clone() for param in model.parameters()]
    with accelerator.accumulate(model), pytest.raises(RuntimeError, match="a micro-batch that is not the last"):
        accelerator.backward(model(batch(0)).sum())
    assert_identical([param.detach() for param in model.parameters()], before)
