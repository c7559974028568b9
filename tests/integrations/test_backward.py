"""feel_backward: a loop that calls loss.backward() itself is felt where it asks for it, and nowhere else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import emo_hf
from emo_hf import EmoNavi
from emo_hf.integrations.backward import feel_backward
from tests.ranks import one_rank

BACKWARD, SCALE = torch.Tensor.backward, torch.amp.GradScaler.scale


@pytest.fixture(autouse=True)
def torch_is_as_it_was() -> Iterator[None]:
    yield
    assert torch.Tensor.backward is BACKWARD
    assert torch.amp.GradScaler.scale is SCALE


class Loop:
    """A linear model whose loss is whatever it is told to be."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: Any = nn.Linear(3, 1)
        self.optimizer = EmoNavi(self.model.parameters(), lr=1e-3)

    def loss(self, value: float) -> Tensor:
        return self.model(torch.ones(2, 3)).sum() * 0.0 + value

    def step(self, *losses: float) -> None:
        for loss in losses:
            self.loss(loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def felt(self) -> tuple[float, int, int]:
        emotion = self.optimizer.emotion
        return emotion.short, emotion.observations, emotion.skipped


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_within_the_context_the_loss_is_felt_and_outside_it_is_not(loop: Loop) -> None:
    with feel_backward(loop.optimizer):
        loop.step(3.0)
    assert loop.felt == (3.0, 1, 0)
    with pytest.warns(RuntimeWarning, match="without a loss"):
        loop.step(9.0)
    assert loop.felt == (3.0, 1, 0)


def test_handles_feel_until_they_are_removed_keep_nobody_alive_and_the_last_gives_torch_its_methods_back(
    loop: Loop,
) -> None:
    gone, other = Loop(), Loop()
    handles = [feel_backward(loop.optimizer, gone.optimizer), feel_backward(loop.optimizer, other.optimizer)]
    (loop.loss(2.0) + other.loss(1.0)).backward()
    handles[0].remove()
    handles[0].remove()
    assert torch.Tensor.backward is not BACKWARD
    forgotten = feel_backward(gone.optimizer)
    reference = weakref.ref(gone.optimizer)
    del gone
    gc.collect()
    assert reference() is None
    handles[1].remove()
    forgotten.remove()
    for each in (loop, other):
        each.step()
        assert each.felt == (3.0, 1, 0)


def test_gradients_and_errors_are_what_they_would_have_been(loop: Loop) -> None:
    loss = loop.model(torch.ones(2, 3)).square().sum()
    expected = torch.autograd.grad(loss, list(loop.model.parameters()), retain_graph=True)
    with feel_backward(loop.optimizer):
        assert loss.backward(retain_graph=True) is None
        torch.testing.assert_close([param.grad for param in loop.model.parameters()], list(expected))
        loss.backward(inputs=[loop.model.bias])
        assert loop.model.bias.grad == 2 * expected[1]
        loop.step()
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.tensor(1.0).backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        loop.optimizer.zero_grad()
        loop.step(2.0)
    assert loop.felt[1:] == (2, 1)


@pytest.mark.parametrize("micro_batches", [[1, 8, 8, 8], [8, 8, 3]])
def test_micro_batches_are_averaged_however_many_a_step_has(micro_batches: list[int], loop: Loop) -> None:
    with feel_backward(loop.optimizer):
        for count in micro_batches:
            loop.step(*[2.0 / 8] * count)
    assert loop.felt == (pytest.approx(0.25), len(micro_batches), 0)
    assert loop.optimizer.emotion.scalar == pytest.approx(0.0, abs=1e-6)


class Nested(torch.autograd.Function):
    """Runs a backward pass of its own within backward, as reentrant checkpointing does, but by the method."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            (torch.ones(1, requires_grad=True) * 100.0).sum().backward()
        return gradient


@pytest.mark.parametrize("how", ["reentrant", "own"])
def test_backward_passes_within_another_are_not_felt(how: str, loop: Loop) -> None:
    inputs = torch.ones(2, 3, requires_grad=True)
    with feel_backward(loop.optimizer):
        reentrant = how == "reentrant"
        output = checkpoint(loop.model, inputs, use_reentrant=True) if reentrant else Nested.apply(loop.model(inputs))
        (output.sum() * 0.0 + 4.0).backward()
        loop.step()
    assert loop.felt == (4.0, 1, 0)


def test_what_is_no_loss_of_these_parameters_is_not_felt_and_an_observed_loss_takes_precedence(loop: Loop) -> None:
    discriminator = Loop()
    with feel_backward(loop.optimizer):
        discriminator.loss(50.0).backward()  # leaves no gradient here
        loop.loss(2.0).backward()
        discriminator.loss(50.0).backward()
        loop.loss(60.0).backward(torch.tensor(1.0))  # a part of a larger pass
        loop.model(torch.ones(2, 3)).backward(torch.ones(2, 1))  # no scalar
        torch.autograd.grad(loop.model.weight.sum() * 70.0, loop.model.weight)
        loop.step()
        assert loop.felt == (2.0, 1, 0)
        loop.optimizer.observe(2.0)
        loop.step(7.0)
    assert loop.felt == (2.0, 2, 0)


def test_a_scaled_loss_is_felt_as_it_was_before_it_was_scaled(loop: Loop) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with feel_backward(loop.optimizer):
        for overflow in (False, True, False):
            scaler.scale(loop.loss(3.0)).backward()
            if overflow:
                loop.model.bias.grad = torch.tensor([torch.inf])
            scaler.step(loop.optimizer)
            scaler.update()
            loop.optimizer.zero_grad()
    assert loop.felt == (pytest.approx(3.0), 2, 1)


def test_a_loss_that_passes_the_tap_on_accelerate_is_felt_once(fresh_accelerate: None, loop: Loop) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(loop.model, loop.optimizer)
    with feel_backward(optimizer):  # finds it inside of the wrapper
        for value in (2.0, 4.0):
            with accelerator.accumulate(model):
                accelerator.backward(loop.loss(value))
                optimizer.step()
    assert loop.felt == (3.0, 1, 0)


def test_attached_emotions_steps_in_backward_and_sharded_parameters_feel_too(loop: Loop) -> None:
    adam = torch.optim.AdamW(loop.model.parameters())
    attachment = emo_hf.attach(adam)
    with feel_backward(adam):
        loop.loss(5.0).backward()
        adam.step()
    assert attachment.emotion.short == 5.0

    loop = Loop()
    handle = emo_hf.step_in_backward(loop.model, loop.optimizer)
    with feel_backward(loop.optimizer):
        for value in (3.0, 2.0):
            loop.step(value)
    handle.remove()
    assert loop.felt == (pytest.approx(0.3 * 2.0 + 0.7 * 3.0), 2, 0)

    loop = Loop()
    with one_rank():
        fully_shard(loop.model, mesh=init_device_mesh("cpu", (1,)))
        loop.optimizer = EmoNavi(loop.model.parameters())
        with feel_backward(loop.optimizer):
            for last in (False, False, True):
                loop.model.set_requires_gradient_sync(last)
                loop.loss(6.0).backward()
            loop.optimizer.step()
        assert loop.felt == (6.0, 1, 0), "every loss counts"


@pytest.mark.parametrize("given", [[], [torch.optim.SGD([nn.Parameter(torch.ones(1))])], [None]])
def test_what_has_no_emotion_is_refused_and_nothing_is_laid_over(given: list[Any]) -> None:
    with pytest.raises(TypeError, match="feel_backward takes"):
        feel_backward(*given)
