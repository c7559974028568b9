"""A loss belongs to its step: when the step does not come, the loss goes with it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from emo_hf import EmoLynx, EmoNavi, attach
from tests.emo_cases import give_gradients, parameters


class Raises(torch.autograd.Function):
    """Its backward fails, as one that runs out of memory does."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("out of memory")


class Loop:
    """A loop that shows losses in one of several ways, to an emo optimizer or to an attached emotion.

    A first step is taken with a loss of 2.
    """

    def __init__(self, show: str, *, attached: bool = False) -> None:
        self.model: nn.Module = nn.Linear(2, 1)
        self.optimizer: Any = (torch.optim.AdamW if attached else EmoNavi)(self.model.parameters(), lr=1e-3)
        self.handle = attach(self.optimizer) if attached else self.optimizer
        self.show = show
        self.backward(2.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert self.felt == (2.0, 1, 0)

    def loss(self, value: float) -> Tensor:
        return self.model(torch.ones(1, 2)).sum() * 0.0 + value

    def shown(self, loss: Tensor, *, last: bool = True) -> Tensor:
        if "observed" in self.show:
            self.handle.observe(loss.item() if "as a number" in self.show else loss)
        if "tapped" in self.show:
            self.handle.tap_loss(loss, last=last)
        return loss

    def backward(self, *values: float) -> None:
        for number, value in enumerate(values):
            self.shown(self.loss(value), last=number == len(values) - 1).backward()

    @property
    def felt(self) -> tuple[float, int, int]:
        """The slow average, how many losses were taken in, and how many were left out."""
        emotion = self.handle.emotion
        return emotion.long, emotion.observations, emotion.skipped

    def ends_with(self, value: float, *, skipped: int) -> None:
        """Take a step and check that it was given this loss."""
        self.optimizer.step()
        assert self.felt == (pytest.approx(0.01 * value + 0.99 * 2.0), 2, skipped)


each_way = pytest.mark.parametrize(
    ("show", "attached"),
    [("observed", False), ("observed", True), ("tapped", False), ("observed and tapped", True)],
)
each_order = pytest.mark.parametrize(
    ("show", "set_to_none"),
    [("observed", True), ("observed", False), ("observed as a number", True), ("observed as a number", False),
     ("observed and tapped", True)],
)  # fmt: skip


@each_way
def test_the_loss_of_a_batch_that_is_left_before_backward_is_dropped(show: str, attached: bool) -> None:
    loop = Loop(show.replace("tapped", "observed"), attached=attached)  # what is tapped goes on to backward
    loop.shown(loop.loss(9.0))  # continue
    loop.shown(loop.loss(8.0))
    loop.backward(3.0)
    loop.ends_with(3.0, skipped=0)


def test_a_batch_that_is_left_is_dropped_where_parameters_move_within_backward_too() -> None:
    model = nn.Linear(2, 1)
    optimizer = EmoNavi(model.parameters(), step_in_backward=True)
    for value in (9.0, 3.0):
        loss = model(torch.ones(1, 2)).sum() * 0.0 + value
        optimizer.observe(loss)
    loss.backward()
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (3.0, 1)


@each_way
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_that_the_model_resets_take_their_losses_along(
    show: str, attached: bool, micro_batches: int
) -> None:
    loop = Loop(show, attached=attached)
    for _ in range(2):
        loop.backward(*[9.0] * micro_batches)
        loop.model.zero_grad()
    loop.backward(*[3.0 / micro_batches] * micro_batches)
    loop.ends_with(3.0, skipped=2)


@each_way
def test_a_backward_pass_that_raises_takes_its_loss_along(show: str, attached: bool) -> None:
    loop = Loop(show, attached=attached)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.shown(Raises.apply(loop.loss(9.0)) * 1.0).backward()
    loop.backward(3.0)
    loop.ends_with(3.0, skipped=0)


@pytest.mark.parametrize("resets", ["optimizer", "model"])
@pytest.mark.parametrize("show", ["observed", "tapped"])
def test_a_step_that_a_gradient_scaler_skips_takes_its_loss_along(show: str, resets: str) -> None:
    loop = Loop(show)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflows in (True, True, False):
        before = loop.model.weight.detach().clone()
        scaler.scale(loop.shown(loop.loss(9.0 if overflows else 3.0))).backward()
        if overflows:
            loop.model.bias.grad = torch.tensor([torch.inf])
        scaler.unscale_(loop.optimizer)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1e-3)
        scaler.step(loop.optimizer)
        scaler.update()
        assert torch.equal(before, loop.model.weight) is overflows
        (loop.optimizer if resets == "optimizer" else loop.model).zero_grad()
    assert loop.felt == (pytest.approx(0.01 * 3.0 + 0.99 * 2.0), 2, 2)


def test_a_number_is_dropped_with_the_gradients_of_a_skipped_step() -> None:
    loop = Loop("observed as a number")
    loop.backward(9.0)
    loop.optimizer.zero_grad()
    loop.backward(3.0)
    loop.ends_with(3.0, skipped=1)


class FrontLoop(Loop):
    """The order of many tutorials: observe, zero_grad, backward, step; a step may be left out, as a scaler does."""

    set_to_none = True

    def backward(self, *values: float) -> None:
        for number, value in enumerate(values):
            loss = self.loss(value)
            if "observed" in self.show:
                self.handle.observe(loss.item() if "as a number" in self.show else loss)
            if number == 0:
                self.optimizer.zero_grad(self.set_to_none)
            if "tapped" in self.show:
                self.handle.tap_loss(loss, last=number == len(values) - 1)
            loss.backward()


@each_order
def test_a_loss_observed_before_the_gradients_are_reset_counts_and_one_whose_step_never_came_does_not(
    show: str, set_to_none: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrontLoop, "set_to_none", set_to_none)
    loop = FrontLoop(show)
    for value in (9.0, 8.0, 7.0):
        loop.backward(value)
    loop.backward(3.0)
    loop.ends_with(3.0, skipped=3)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("show", ["observed", "observed and tapped"])
def test_micro_batches_of_a_step_that_never_came_go_together_and_count_as_one(
    show: str, set_to_none: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrontLoop, "set_to_none", set_to_none)
    loop = FrontLoop(show)
    loop.backward(4.0, 5.0)
    loop.backward(1.0, 2.0)
    loop.ends_with(3.0, skipped=1)


def test_micro_batches_as_numbers_are_summed_in_that_order_too() -> None:
    loop = FrontLoop("observed as a number")
    loop.backward(1.0, 2.0)
    loop.ends_with(3.0, skipped=0)
    loop.backward(1.0, 2.0)  # the gradients that are reset now have been used
    loop.optimizer.step()
    assert loop.felt[1:] == (3, 0)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_thrown_away_counts_once_though_its_loss_was_observed_and_tapped(micro_batches: int) -> None:
    loop = Loop("observed and tapped")
    loop.backward(*[9.0] * micro_batches)
    loop.optimizer.zero_grad()
    loop.backward(*[1.0] * micro_batches)
    loop.ends_with(float(micro_batches), skipped=1)


def test_an_observed_loss_goes_with_the_tapped_one_of_the_same_step_where_the_next_is_only_tapped() -> None:
    loop = Loop("observed as a number and tapped")
    loop.backward(9.0)
    loop.model.zero_grad()
    loop.show = "tapped"
    loop.backward(3.0)
    loop.ends_with(3.0, skipped=1)


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


def test_zero_grad_between_steps_is_no_skipped_step() -> None:
    loop = Loop("tapped")
    for _ in range(3):
        loop.optimizer.zero_grad()
        loop.backward(2.0)
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert loop.felt[1:] == (4, 0)


def test_losses_shown_for_one_backward_pass_are_all_kept_when_gradients_are_reset_before_it() -> None:
    loop = Loop("observed")
    losses = [loop.shown(loop.loss(value)) for value in (1.0, 2.0)]
    loop.optimizer.zero_grad()
    sum(losses, torch.zeros(())).backward()
    loop.ends_with(3.0, skipped=0)


def made_of(how: str) -> Callable[[Loop, float], None]:
    """A backward pass that comes to the shown loss on its way, or never."""

    def run(loop: Loop, value: float) -> None:
        loss = loop.loss(value)
        if how == "shown after backward":
            loss.backward()
            loop.shown(loss)
        elif how == "another tensor of the same value":
            loop.shown(loss * 1.0)
            loss.backward()
        elif how == "within a larger loss":
            loop.shown(loss)
            (loss / 4 + loop.loss(1.0)).backward()
        elif how == "by autograd.grad":
            loop.shown(loss)
            torch.autograd.grad(loss, list(loop.model.parameters()))
        elif how == "kept for another pass":
            loop.shown(loss)
            loss.backward(retain_graph=True)
            loss.backward()
        elif how == "changed in place":
            loop.shown(loss)
            loss.div_(4).backward()
        else:
            model = loop.model
            if how == "compiled":
                model = torch.compile(loop.model, backend="aot_eager")
            inputs = torch.ones(1, 2, requires_grad=True)
            if "checkpoint" in how:
                output = checkpoint(model, inputs, use_reentrant=how == "reentrant checkpoint")
            else:
                output = model(inputs)
            loop.shown(output.sum() * 0.0 + value).backward()

    return run


@pytest.mark.parametrize(
    "how",
    ["shown after backward", "another tensor of the same value", "within a larger loss", "by autograd.grad",
     "kept for another pass", "changed in place", "compiled", "checkpoint", "reentrant checkpoint"],
)  # fmt: skip
def test_a_loss_counts_however_backward_comes_to_it(how: str) -> None:
    loop = Loop("observed")
    for _ in range(2):  # micro-batches of one step
        made_of(how)(loop, 1.5)
    loop.ends_with(3.0, skipped=0)


def test_a_shown_loss_keeps_neither_graph_nor_optimizer_alive_and_the_graph_no_optimizer() -> None:
    loop = Loop("observed")
    loss = loop.shown(loop.loss(1.0))
    graph, optimizer = weakref.ref(loss), weakref.ref(loop.optimizer)
    del loop
    gc.collect()
    assert optimizer() is None
    del loss
    assert graph() is None


def test_gradients_that_ddp_averages_later_are_not_taken_for_thrown_away(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        loop = Loop("observed")
        loop.model = DistributedDataParallel(loop.model)
        with loop.model.no_sync():
            loop.backward(1.0, 1.0)
        loop.backward(1.0)
        loop.ends_with(3.0, skipped=0)
    finally:
        torch.distributed.destroy_process_group()


def test_gradient_clipping_and_scaling_do_not_reach_the_loss() -> None:
    model = nn.Linear(2, 1)
    optimizer = EmoLynx(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = model(torch.ones(1, 2)).square().mean() + 1.0
    optimizer.observe(loss)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert optimizer.emotion.short == loss.item()
