"""A loss belongs to its step: when the step does not come, the loss goes with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emo_hf import EmoLynx, EmoNavi, EmoOptimizer
from tests.emo_cases import give_gradients, parameters


def scaled_step(
    optimizer: EmoOptimizer, scaler: torch.amp.GradScaler, param: nn.Parameter, loss: float, *, overflow: bool = False
) -> None:
    value = param.sum() * 0.0 + loss
    optimizer.observe(value)
    scaler.scale(value).backward()
    param.grad = torch.full_like(param, torch.inf if overflow else 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_a_step_that_the_gradient_scaler_skips_takes_its_loss_along() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = EmoNavi([param])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaled_step(optimizer, scaler, param, 2.0)
    before = param.detach().clone()
    scaled_step(optimizer, scaler, param, 9.0, overflow=True)
    assert torch.equal(param, before)
    assert optimizer.emotion.observations == 1
    scaled_step(optimizer, scaler, param, 3.0)
    assert not torch.equal(param, before)
    assert optimizer.emotion.long == pytest.approx(0.01 * 3.0 + 0.99 * 2.0)
    assert (optimizer.emotion.observations, optimizer.emotion.skipped) == (2, 1)


def test_a_loss_observed_before_the_gradients_are_reset_still_counts() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = EmoNavi([param])
    for loss in (2.0, 3.0):  # the loop of many tutorials: forward, zero_grad, backward, step
        value = param.sum() * 0.0 + loss
        optimizer.observe(value)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert (optimizer.emotion.observations, optimizer.emotion.skipped) == (2, 0)


def test_gradient_clipping_and_scaling_do_not_reach_the_loss() -> None:
    model = nn.Linear(2, 1)
    optimizer = EmoLynx(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = model(torch.ones(1, 2)).square().mean() + 1.0
    optimizer.observe(loss)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    scaler.step(optimizer)
    assert optimizer.emotion.short == loss.item()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_drops_a_tapped_loss_whose_step_never_came(set_to_none: bool) -> None:
    params = parameters()
    optimizer = EmoNavi(params)
    give_gradients(params, 0)
    optimizer.tap_loss(torch.tensor(9.0))
    optimizer.zero_grad(set_to_none)
    gradients = [param.grad for param in params if param.grad is not None]
    assert len(gradients) == (0 if set_to_none else len(params))
    assert not any(gradient.any() for gradient in gradients)
    assert optimizer.emotion.skipped == 1
    optimizer.tap_loss(torch.tensor(2.0))
    give_gradients(params, 1)
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.skipped) == (2.0, 1)


def test_a_tapped_loss_whose_gradients_were_thrown_away_otherwise_is_dropped_by_the_next() -> None:
    model = nn.Linear(2, 1)
    optimizer = EmoNavi(model.parameters())
    for loss in (9.0, 2.0):
        optimizer.tap_loss(torch.tensor(loss))
        model(torch.ones(1, 2)).sum().backward()
        if loss == 9.0:
            model.zero_grad()
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.skipped) == (2.0, 1)


def test_zero_grad_between_steps_is_no_skipped_step() -> None:
    params = parameters()
    optimizer = EmoNavi(params)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.tap_loss(torch.tensor(1.0))
        give_gradients(params, step)
        optimizer.step()
        optimizer.zero_grad()
    assert (optimizer.emotion.observations, optimizer.emotion.skipped) == (3, 0)
