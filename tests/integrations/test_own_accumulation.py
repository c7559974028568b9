"""Loops that divide the loss by N and step every N micro-batches themselves, while accelerate counts to 1."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import emo_hf
from emo_hf import EmoNavi
from emo_hf.integrations import accelerate as loss_tap
from tests import tiny

N = 8
BATCHES = 40 * N + 1
LR = 1e-2


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    loss_tap.uninstall()
    loss_tap._switched_off = False


class Run:
    """A regression on noisy targets, in one of the ways to accumulate gradients."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(4 * BATCHES, 3, generator=generator)
        targets = inputs.sum(dim=1, keepdim=True) + 3.0 + torch.randn(4 * BATCHES, 1, generator=generator)
        self.data = DataLoader(TensorDataset(inputs, targets), batch_size=4)
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(3, 1)
        self.inner = EmoNavi(self.model.parameters(), lr=LR)
        self.begun = [param.detach().clone() for param in self.model.parameters()]
        self.factors: list[float] = []

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = (self.model(inputs) - targets).square().mean()
        return loss

    def divided_by_hand(self) -> Run:
        """The loop of transformers' scripts without a Trainer, its first step after one micro-batch included."""
        accelerator = Accelerator(cpu=True)
        self.model, optimizer, data = accelerator.prepare(self.model, self.inner, self.data)
        for step, (inputs, targets) in enumerate(data):
            loss = self.loss(inputs, targets)
            loss = loss / N
            accelerator.backward(loss)
            if step % N == 0 or step == len(data) - 1:
                optimizer.step()
                optimizer.zero_grad()
                self.factors.append(self.inner.emotion.coefficient)
        return self

    def told(self) -> Run:
        """The same steps, with accelerate told where each one ends."""
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=N)
        self.model, _, data = accelerator.prepare(self.model, self.inner, self.data)
        for step, (inputs, targets) in enumerate(data):
            accelerator.gradient_state._set_sync_gradients(step % N == 0 or step == len(data) - 1)
            accelerator.backward(self.loss(inputs, targets))
            if accelerator.sync_gradients:
                self.inner.step()
                self.inner.zero_grad()
                self.factors.append(self.inner.emotion.coefficient)
        return self

    @property
    def way(self) -> float:
        moved = zip(self.model.parameters(), self.begun, strict=True)
        return float(sum(((param.detach() - begun).square().sum() for param, begun in moved), torch.zeros(()))) ** 0.5


def test_a_loop_that_divides_by_itself_has_the_factors_and_goes_the_way_of_one_that_accelerate_divides_for() -> None:
    right = Run().told()
    by_hand = Run().divided_by_hand()
    assert len(by_hand.factors) == len(right.factors) == 41
    assert by_hand.factors == pytest.approx(right.factors, rel=1e-4)
    assert sum(by_hand.factors) > 35.0
    assert by_hand.way == pytest.approx(right.way, rel=1e-3)
    assert by_hand.way > 0.3


def test_the_loss_of_such_a_loop_is_the_mean_of_what_it_sends_to_backward() -> None:
    accelerator = Accelerator(cpu=True)
    run = Run()
    run.model, optimizer = accelerator.prepare(run.model, run.inner)
    for losses in ([2.0], [1.0, 2.0, 6.0], [4.0, 2.0]):
        for loss in losses:
            accelerator.backward(run.model(torch.ones(1, 3)).sum() * 0.0 + loss)
        optimizer.step()
        optimizer.zero_grad()
    long = 0.99 * (0.99 * 2.0 + 0.01 * 3.0) + 0.01 * 3.0
    assert run.inner.emotion.long == pytest.approx(long)
    assert (run.inner.emotion.observations, run.inner.emotion.skipped) == (3, 0)


def test_a_framework_that_says_which_micro_batch_is_the_last_has_scaled_them_for_their_sum() -> None:
    accelerator = Accelerator(cpu=True)
    run = Run()
    run.model, optimizer = accelerator.prepare(run.model, run.inner)
    for step in range(2):
        for loss, last in ((1.0, False), (2.0, False), (0.5, True), (0.5, True)):  # the last in two passes
            accelerator.gradient_state._set_sync_gradients(last)
            accelerator.backward(run.model(torch.ones(1, 3)).sum() * 0.0 + loss)
        optimizer.step()
        optimizer.zero_grad()
        assert run.inner.emotion.short == 4.0, step


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_trainers_loss_is_felt_as_it_is_logged_to_the_last_bit(accumulation: int, tmp_path: Path) -> None:
    emo_hf.register()
    try:
        felt = tiny.Felt()
        trainer = tiny.trainer(tmp_path, gradient_accumulation_steps=accumulation, callbacks=[felt])
        trainer.train()
    finally:
        emo_hf.unregister()
    logged = [line["loss"] for line in tiny.train_lines(trainer)]
    assert felt.losses == logged
    assert len(logged) == -(-10 // accumulation)


def observe(optimizer: EmoNavi, losses: list[float], weight: float | None = None) -> None:
    for loss in losses:
        optimizer.observe(loss, weight=weight)
    optimizer.step()


def test_a_summed_loss_that_jumps_with_its_micro_batches_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = EmoNavi([nn.Parameter(torch.ones(2))])
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        for count in (1, N, N, 1, N):
            observe(optimizer, [2.0 / N] * count)
    assert [record.getMessage() for record in caplog.records] == [
        "The loss of a step went from 0.25 to 2 as its micro-batches went from 1 to 8: their losses, as they were "
        "scaled for backward, are summed, and the emotion feels a sudden change. Let all steps have as many "
        "micro-batches, divide by the number that a step really has, or show the losses by observe(loss, weight=1), "
        "which averages them."
    ]


def test_where_a_framework_sends_the_losses_the_remedy_is_one_for_its_users(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = EmoNavi([nn.Parameter(torch.ones(2))])
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        for count in (N, 1):
            for number in range(count):
                optimizer.tap_loss(torch.tensor(2.0 / N), last=number == count - 1)
            optimizer.step()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "divide its sum by num_items_in_batch" in said
    assert "observe" not in said


@pytest.mark.parametrize(
    ("steps", "weight"),
    [
        ([[0.25] * 8, [0.3] * 8], None),  # as many
        ([[2.0], [0.25] * 8, [0.5] * 4], None),  # divided by what there really are
        ([[0.25], [0.25] * 8], 1.0),  # averaged
        ([[2.0], [7.0, 7.0]], None),  # a jump, but not for that
        ([[0.25], [-0.25] * 8], None),
        ([[0.0], [0.25] * 8], None),
        ([[float("nan")], [0.25] * 8], None),
    ],
)
def test_other_changes_of_the_loss_are_not_warned_of(
    steps: list[list[float]], weight: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = EmoNavi([nn.Parameter(torch.ones(2))])
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        for losses in steps:
            observe(optimizer, losses, weight)
    assert not caplog.records
