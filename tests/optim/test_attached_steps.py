"""Steps of an optimizer with an emotion attached: closures, schedulers, scalers, steps that fail or hold others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer

from emo_hf import Attachment, attach
from tests.emo_cases import assert_identical, losses
from tests.optim.attached import (
    STEPS,
    attached,
    build,
    felt,
    params_of,
    rates,
    regression,
    run,
    weights,
)


def test_the_loss_of_a_closure_is_felt_in_the_step_that_it_belongs_to() -> None:
    results = []
    for by in ("observe", "position", "keyword"):
        model, loss_of = regression()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        handle = attach(optimizer, "v3.6")

        def closure(optimizer: Optimizer = optimizer, loss_of: Callable[[], torch.Tensor] = loss_of) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            return loss

        for _ in range(12):
            if by == "observe":
                handle.observe(closure())
                optimizer.step()
            else:
                loss = optimizer.step(closure) if by == "position" else optimizer.step(closure=closure)
                assert isinstance(loss, torch.Tensor)
        assert (handle.emotion.observations, handle.emotion.skipped, rates(optimizer)) == (12, 0, [0.3])
        results.append(weights(optimizer))
        own = handle.emotion.short

        def observing(handle: Attachment = handle) -> float:
            handle.observe(7.0)
            return 1.0

        optimizer.step(observing)
        assert handle.emotion.short > own + 1.0, "a loss that the closure shows itself wins"
    assert_identical(results[1], results[0])
    assert_identical(results[2], results[0])


class TwiceADescent(torch.optim.SGD):
    """Sharpness-aware: evaluates the loss again at weights that it has moved, as SAM does."""

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        moved_by = [0.05 * param.grad for param in params_of(self)]
        for param, by in zip(params_of(self), moved_by, strict=True):
            param.add_(by)
        with torch.enable_grad():
            closure()
        for param, by in zip(params_of(self), moved_by, strict=True):
            param.sub_(by)
        super().step()  # hooks of torch run for the inner call as well
        self.seen = rates(self)
        return loss


@pytest.mark.parametrize("observes", [False, True])
def test_a_closure_that_is_evaluated_twice_is_one_loss(observes: bool) -> None:
    model, loss_of = regression()
    optimizer = TwiceADescent(model.parameters(), lr=0.1)
    handle = attach(optimizer)
    handle.observe(10.0)
    handle._engine.decide(handle._facts)  # so that what follows is a sudden fall, and the factor far from 1
    values = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        values.append(loss.item())
        if observes:
            handle.observe(loss)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert optimizer.seen == [0.1 * handle.emotion.coefficient] != [0.1]
        assert rates(optimizer) == [0.1]
    assert handle.emotion == felt([10.0, *values[::2]])


class SharpnessAware(Optimizer):
    """SAM as it is mostly used: two calls around two backward passes, and never `step()`."""

    def __init__(self, params: Any, base: type[Optimizer], **options: Any) -> None:
        super().__init__(params, options)
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for param in params_of(self):
            self.state[param]["moved"] = 0.05 * param.grad
            param.add_(self.state[param]["moved"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for param in params_of(self):
            param.sub_(self.state[param]["moved"])
        self.base.step()
        self.zero_grad()


def test_an_optimizer_that_steps_another_past_its_own_step_is_scaled_there() -> None:
    model, loss_of = regression()
    optimizer = SharpnessAware(model.parameters(), torch.optim.SGD, lr=0.1)
    handle = attach(optimizer)
    seen: list[float] = []
    values = []
    optimizer.base.register_step_pre_hook(lambda *_: seen.extend(rates(optimizer)))
    for step in range(4):
        loss = loss_of() * (1.0 if step else 100.0)  # a sudden fall, so that the factor is not 1
        values.append(loss.item())
        handle.observe(loss)
        loss.backward()
        optimizer.first_step()
        loss_of().backward()
        optimizer.second_step()
        assert seen[-1] == 0.1 * handle.emotion.coefficient
        assert rates(optimizer) == [0.1]
    assert seen[-1] != 0.1
    assert handle.emotion == felt(values)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=STEPS),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(optimizer, 12)],
        [4],
    ),
}


def rates_of_a_run(name: str, make: Callable[[Optimizer], Any], when: str) -> list[list[float]]:
    optimizer = build(name)
    handle = attach(optimizer) if when == "before" else None
    scheduler = make(optimizer)
    handle = attach(optimizer) if when == "after" else handle
    seen = []
    for t in range(STEPS - 1):
        run(optimizer, handle, range(t, t + 1))
        scheduler.step(*[losses(t + 1)[t]] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
        seen.append([float(lr) for lr in rates(optimizer)])
    assert handle is None or handle.emotion.observations == STEPS - 1
    return seen


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["sgd", "adamw of rate tensors"])
def test_a_scheduler_sees_and_sets_the_users_rate(name: str, scheduler: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that step() was overridden, or never called
        warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)
        never, before, after = (
            rates_of_a_run(name, SCHEDULERS[scheduler], when) for when in ("never", "before", "after")
        )
    assert never == before == after
    assert never[0] != never[-1]


@pytest.mark.parametrize("name", ["adamw", "adamw of rate tensors", "adafactor"])
def test_a_step_that_raises_gives_the_rates_back_at_once(name: str) -> None:
    optimizer, handle = attached(name)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    before = rates(optimizer)
    run(optimizer, handle, range(6))
    param = params_of(optimizer)[-1]
    param.grad = param.grad.to_sparse()
    handle.observe(20.0)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert handle.emotion.coefficient != 1.0
    assert all(now is lr for now, lr in zip(rates(optimizer), before, strict=True))
    scheduler.step()
    assert [float(lr) for lr in rates(optimizer)] == pytest.approx([0.005, 0.001])
    run(optimizer, handle, range(6, 8))
    assert handle.emotion.observations == 9


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_leaves_out_takes_its_loss_along_but_for_a_fused_one(fused: bool) -> None:
    """A fused optimizer judges an overflow by itself: to know of it would mean to wait for the device."""
    model, loss_of = regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    handle = attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    shown = []
    for overflow in (False, True, False):
        optimizer.zero_grad(set_to_none=overflow)
        assert all((param.grad is None) is (overflow or not shown) for param in params_of(optimizer))
        loss = loss_of() + 100.0 * overflow
        handle.observe(loss)
        scaler.scale(loss).backward()
        if overflow:
            model.bias.grad.fill_(torch.inf)
        if fused or not overflow:
            shown.append(loss.item())
        before = weights(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert all(map(torch.equal, before, weights(optimizer))) is overflow
        assert rates(optimizer) == [0.1]
    assert handle.emotion.short == felt(shown).short
    assert (handle.emotion.observations, handle.emotion.skipped) == (len(shown), 3 - len(shown))


def releasing_gradients(model: nn.Linear) -> Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    return optimizer


def moving_by_hooks(model: nn.Module) -> Optimizer:
    def move(param: torch.Tensor) -> None:
        param.data.sub_(param.grad, alpha=0.1)
        param.grad = None

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(move)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("make", [releasing_gradients, moving_by_hooks])
def test_an_optimizer_that_moves_parameters_within_backward_is_refused_at_its_first_step(make: Any) -> None:
    model, loss_of = regression()
    optimizer = make(model)
    handle = attach(optimizer)
    loss = loss_of()
    handle.observe(loss)

    def backward_and_step() -> None:
        loss.backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"moves parameters one by one within backward.*emo_hf\.step_in_backward"):
        backward_and_step()
