"""feel_backward: a loop that calls loss.backward() itself is felt where it asks for it, and nowhere else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import emo_hf
from emo_hf import EmoNavi
from emo_hf.integrations.backward import feel_backward

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
        self.model = nn.Linear(3, 1)
        self.optimizer = EmoNavi(self.model.parameters(), lr=1e-3)

    def loss(self, value: float) -> Tensor:
        return self.model(torch.ones(2, 3)).sum() * 0.0 + value

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def felt(self) -> tuple[float, int, int]:
        emotion = self.optimizer.emotion
        return emotion.short, emotion.observations, emotion.skipped


def test_within_the_context_the_loss_is_felt_and_outside_it_is_not() -> None:
    loop = Loop()
    with feel_backward(loop.optimizer):
        loop.loss(3.0).backward()
        loop.step()
    assert loop.felt == (3.0, 1, 0)
    loop.loss(9.0).backward()
    with pytest.warns(RuntimeWarning, match="without a loss"):
        loop.step()
    assert loop.felt == (3.0, 1, 0)


def test_a_handle_feels_until_it_is_removed_and_the_last_one_gives_torch_its_methods_back() -> None:
    one, other = Loop(), Loop()
    handles = [feel_backward(one.optimizer), feel_backward(one.optimizer, other.optimizer)]
    (one.loss(2.0) + other.loss(1.0)).backward()
    handles[0].remove()
    handles[0].remove()
    assert torch.Tensor.backward is not BACKWARD
    handles[1].remove()
    for loop in (one, other):
        loop.step()
        assert loop.felt == (3.0, 1, 0)


def test_gradients_are_what_they_would_have_been() -> None:
    loop = Loop()
    loss = loop.model(torch.ones(2, 3)).square().sum()
    expected = torch.autograd.grad(loss, list(loop.model.parameters()), retain_graph=True)
    with feel_backward(loop.optimizer):
        assert loss.backward(retain_graph=True) is None
        torch.testing.assert_close([param.grad for param in loop.model.parameters()], list(expected))
        loss.backward(inputs=[loop.model.bias])
    assert loop.model.bias.grad == 2 * expected[1]


@pytest.mark.parametrize("micro_batches", [[1, 8, 8, 8], [8, 8, 3]])
def test_micro_batches_are_averaged_however_many_a_step_has(micro_batches: list[int]) -> None:
    loop = Loop()
    with feel_backward(loop.optimizer):
        for count in micro_batches:
            for _ in range(count):
                (loop.loss(2.0) / 8).backward()
            loop.step()
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


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "own"])
def test_backward_passes_within_another_are_not_felt(how: str) -> None:
    loop = Loop()
    inputs = torch.ones(2, 3, requires_grad=True)
    with feel_backward(loop.optimizer):
        if how == "own":
            output = Nested.apply(loop.model(inputs))
        else:
            output = checkpoint(loop.model, inputs, use_reentrant=how == "reentrant")
        (output.sum() * 0.0 + 4.0).backward()
        loop.step()
    assert loop.felt == (4.0, 1, 0)


def test_what_is_no_loss_of_these_parameters_is_not_felt() -> None:
    loop, discriminator = Loop(), Loop()
    with feel_backward(loop.optimizer):
        discriminator.loss(50.0).backward()  # leaves no gradient here
        loop.loss(2.0).backward()
        discriminator.loss(50.0).backward()
        loop.model(torch.ones(2, 3)).backward(torch.ones(2, 1))  # no scalar
        torch.autograd.grad(loop.model.weight.sum() * 70.0, loop.model.weight)
        loop.step()
    assert loop.felt == (2.0, 1, 0)


def test_errors_of_backward_pass_through_and_leave_it_working() -> None:
    loop = Loop()
    with feel_backward(loop.optimizer):
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.tensor(1.0).backward()
        loss = loop.loss(2.0)
        loss.backward()
        loop.step()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        loop.optimizer.zero_grad()
        loop.loss(2.0).backward()
        loop.step()
    assert loop.felt == (2.0, 2, 1)


def test_a_scaled_loss_is_felt_as_it_was_before_it_was_scaled() -> None:
    loop = Loop()
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


def test_an_observed_loss_takes_precedence() -> None:
    loop = Loop()
    with feel_backward(loop.optimizer):
        loop.optimizer.observe(7.0)
        loop.loss(2.0).backward()
        loop.step()
    assert loop.felt == (7.0, 1, 0)


def test_a_loss_that_passes_the_tap_on_accelerate_is_felt_once() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loop = Loop()
    model, optimizer = accelerator.prepare(loop.model, loop.optimizer)
    with feel_backward(optimizer):  # finds it inside of the wrapper
        for value in (2.0, 4.0):
            with accelerator.accumulate(model):
                accelerator.backward(loop.loss(value))
                optimizer.step()
    assert loop.felt == (3.0, 1, 0)


def test_an_attached_emotion_feels_too() -> None:
    loop = Loop()
    adam = torch.optim.AdamW(loop.model.parameters())
    attachment = emo_hf.attach(adam)
    with feel_backward(adam):
        loop.loss(5.0).backward()
        adam.step()
    assert attachment.emotion.short == 5.0


def test_sharded_parameters_feel_every_loss(tmp_path: Path) -> None:
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model: Any = nn.Linear(3, 1)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = EmoNavi(model.parameters())
        with feel_backward(optimizer):
            for last in (False, False, True):
                model.set_requires_gradient_sync(last)
                (model(torch.ones(2, 3)).sum() * 0.0 + 6.0).backward()
            optimizer.step()
        assert (optimizer.emotion.short, optimizer.emotion.skipped) == (6.0, 0)
    finally:
        destroy_process_group()


def test_steps_that_are_taken_in_backward_are_felt() -> None:
    loop = Loop()
    handle = emo_hf.step_in_backward(loop.model, loop.optimizer)
    with feel_backward(loop.optimizer):
        for value in (3.0, 2.0):
            loop.loss(value).backward()
            loop.step()
    handle.remove()
    assert loop.felt == (pytest.approx(0.3 * 2.0 + 0.7 * 3.0), 2, 0)


@pytest.mark.parametrize("given", [[], [torch.optim.SGD([nn.Parameter(torch.ones(1))])], [None]])
def test_what_has_no_emotion_is_refused_and_nothing_is_laid_over(given: list[Any]) -> None:
    with pytest.raises(TypeError, match="feel_backward takes"):
        feel_backward(*given)


def test_an_optimizer_is_not_kept_alive_by_a_handle_that_nobody_removes() -> None:
    loop, other = Loop(), Loop()
    handle = feel_backward(loop.optimizer)
    gone = weakref.ref(loop.optimizer)
    del loop
    gc.collect()
    assert gone() is None
    other.loss(1.0).backward()
    handle.remove()
