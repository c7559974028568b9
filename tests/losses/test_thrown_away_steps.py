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


SET_TO_NONE = pytest.mark.parametrize("set_to_none", [True, False])


class FrontLoop:
    """The loop of many tutorials: observe, zero_grad, backward, step; a step may be left out, as a scaler does."""

    def __init__(self, set_to_none: bool, *, tapped: bool = False) -> None:
        self.param = nn.Parameter(torch.ones(3))
        self.optimizer = EmoNavi([self.param])
        self.set_to_none = set_to_none
        self.tapped = tapped
        self.step(2.0)
        assert self.emotion == (2.0, 1, 0)

    def step(self, *losses: float, taken: bool = True) -> None:
        """One step of one or several micro-batches."""
        for number, value in enumerate(losses):
            loss = self.param.sum() * 0.0 + value
            self.optimizer.observe(loss)
            if number == 0:
                self.optimizer.zero_grad(self.set_to_none)
            if self.tapped:
                self.optimizer.tap_loss(loss, last=number == len(losses) - 1)
            loss.backward()
        if taken:
            self.optimizer.step()

    @property
    def emotion(self) -> tuple[float, int, int]:
        """The slow average, and how many losses were taken in and left out."""
        emotion = self.optimizer.emotion
        return emotion.long, emotion.observations, emotion.skipped


@SET_TO_NONE
@pytest.mark.parametrize("tapped", [False, True], ids=["observed", "observed and tapped"])
def test_the_loss_of_a_step_that_never_came_is_not_added_to_the_next(set_to_none: bool, tapped: bool) -> None:
    loop = FrontLoop(set_to_none, tapped=tapped)
    loop.step(9.0, taken=False)
    loop.step(3.0)
    assert loop.emotion == (pytest.approx(0.01 * 3.0 + 0.99 * 2.0), 2, 1)


@SET_TO_NONE
@pytest.mark.parametrize("tapped", [False, True], ids=["observed", "observed and tapped"])
def test_micro_batches_of_a_step_that_never_came_go_together_and_count_as_one(set_to_none: bool, tapped: bool) -> None:
    loop = FrontLoop(set_to_none, tapped=tapped)
    loop.step(4.0, 5.0, taken=False)
    loop.step(1.0, 2.0)
    assert loop.emotion == (pytest.approx(0.01 * 3.0 + 0.99 * 2.0), 2, 1)


@SET_TO_NONE
def test_several_steps_that_never_came_count_as_many(set_to_none: bool) -> None:
    loop = FrontLoop(set_to_none)
    for loss in (9.0, 8.0, 7.0):
        loop.step(loss, taken=False)
    loop.step(3.0)
    loop.step(3.0)
    long = 0.01 * 3.0 + 0.99 * 2.0
    assert loop.emotion == (pytest.approx(0.01 * 3.0 + 0.99 * long), 3, 3)


@SET_TO_NONE
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_thrown_away_counts_once_though_its_loss_was_observed_and_tapped(
    set_to_none: bool, micro_batches: int
) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = EmoNavi([param])
    for value, taken in ((9.0, False), (3.0, True), (3.0, True)):
        for number in range(micro_batches):
            loss = param.sum() * 0.0 + value / micro_batches
            optimizer.observe(loss)
            optimizer.tap_loss(loss, last=number == micro_batches - 1)
            loss.backward()
        if taken:
            optimizer.step()
        optimizer.zero_grad(set_to_none)
    assert optimizer.emotion.long == pytest.approx(3.0)
    assert (optimizer.emotion.observations, optimizer.emotion.skipped) == (2, 1)


def test_a_step_thrown_away_by_the_model_counts_once_though_its_loss_was_observed_and_tapped() -> None:
    model = nn.Linear(2, 1)
    optimizer = EmoNavi(model.parameters())
    for value, taken in ((9.0, False), (3.0, True)):
        loss = model(torch.ones(1, 2)).sum() * 0.0 + value
        optimizer.observe(loss)
        optimizer.tap_loss(loss)
        loss.backward()
        if taken:
            optimizer.step()
        model.zero_grad()
    assert (optimizer.emotion.short, optimizer.emotion.observations, optimizer.emotion.skipped) == (3.0, 1, 1)


def test_an_observed_loss_goes_with_the_tapped_one_of_the_same_step_where_the_next_is_only_tapped() -> None:
    model = nn.Linear(2, 1)
    optimizer = EmoNavi(model.parameters())
    optimizer.observe(9.0)
    optimizer.tap_loss(torch.tensor(9.0))
    model(torch.ones(1, 2)).sum().backward()
    model.zero_grad()  # past the optimizer
    optimizer.tap_loss(torch.tensor(3.0))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.observations, optimizer.emotion.skipped) == (3.0, 1, 1)


def test_losses_shown_for_one_backward_pass_are_all_kept_when_gradients_are_reset_before_it() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = EmoNavi([param])
    for _ in range(2):
        losses = [param.sum() * 0.0 + value for value in (1.0, 2.0)]
        for loss in losses:
            optimizer.observe(loss)
        optimizer.zero_grad()
        sum(losses, torch.zeros(())).backward()
        optimizer.step()
    assert optimizer.emotion.short == pytest.approx(3.0)
    assert (optimizer.emotion.observations, optimizer.emotion.skipped) == (2, 0)
