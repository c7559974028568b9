"""The loss that a real Accelerator sends to backward reaches the emo optimizers that it has prepared."""

from __future__ import annotations

import functools
import linecache
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from emo_hf import EmoNavi, attach
from emo_hf.integrations import accelerate as loss_tap
from emo_hf.optim import engine
from tests import tiny
from tests.emo_cases import assert_identical, parameters
from tests.ranks import one_rank

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

without_a_loss = functools.partial(pytest.warns, RuntimeWarning, match="without a loss")


class Job:
    """A regression in batches of 4, the last one smaller, prepared by a real Accelerator."""

    def __init__(self, accumulation: int = 1, batches: int = 8, make: Callable[..., Any] = EmoNavi) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        inputs = torch.randn(4 * batches - 1, 3)
        data = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True) + 3.0), batch_size=4)
        model = nn.Linear(3, 1)
        self.inner = make(model.parameters(), lr=0.01)
        self.felt = tiny.felt_by(self.inner) if isinstance(self.inner, EmoNavi) else []
        self.model, self.optimizer, self.data = self.accelerator.prepare(model, self.inner, data)
        self.batch = next(iter(self.data))

    def loss(self, batch: list[Tensor] | None = None) -> Tensor:
        inputs, targets = batch or self.batch
        loss: Tensor = (self.model(inputs) - targets).square().mean()
        return loss

    def constant(self, value: float) -> Tensor:
        """A loss of the model's parameters that is what it is told to be."""
        loss: Tensor = self.model(torch.ones(1, 3)).sum() * 0.0 + value
        return loss

    def step(self, *losses: float | Tensor) -> None:
        """Send losses to backward and take a step."""
        for loss in losses:
            self.accelerator.backward(loss if isinstance(loss, Tensor) else self.constant(loss))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, before_backward: Callable[[Tensor], None] = lambda loss: None) -> list[list[float]]:
        """Over the data as accelerate has it done; the losses of the micro-batches of each step."""
        micro: list[list[float]] = [[]]
        for batch in self.data:
            with self.accelerator.accumulate(self.model):
                loss = self.loss(batch)
                micro[-1].append(loss.item())
                before_backward(loss)
                self.step(loss)
            if self.accelerator.sync_gradients:
                micro.append([])
        return micro[:-1]


# What the loss of a step is


@pytest.mark.parametrize(("accumulation", "batches", "sizes"), [(1, 3, [1, 1, 1]), (4, 10, [4, 4, 2])])
def test_the_loss_of_a_step_is_the_mean_of_its_micro_batches(
    accumulation: int, batches: int, sizes: list[int]
) -> None:
    job = Job(accumulation, batches)
    micro = job.train()
    assert [len(losses) for losses in micro] == sizes
    assert job.felt == pytest.approx([sum(losses) / len(losses) for losses in micro], rel=1e-5)
    assert (job.inner.emotion.observations, job.inner.emotion.skipped) == (len(sizes), 0)


def test_what_the_user_observes_takes_precedence_and_a_closure_counts_its_loss_once() -> None:
    job = Job()
    job.train(lambda loss: job.inner.observe(loss.detach() * 0.0 + 42.0))
    assert job.felt == [42.0] * 8
    job.felt.clear()

    def closure() -> Tensor:
        job.optimizer.zero_grad()
        loss = job.loss()
        job.accelerator.backward(loss)
        return loss

    expected = job.loss().item()
    job.optimizer.step(closure)
    assert job.felt == [pytest.approx(expected)]


def test_gradients_are_those_without_a_tap_and_several_elements_are_left_to_torch() -> None:
    job = Job()
    loss = job.loss()
    expected = torch.autograd.grad(loss, list(job.model.parameters()), retain_graph=True)
    job.accelerator.backward(loss=loss)
    torch.testing.assert_close([param.grad for param in job.model.parameters()], list(expected))
    job.optimizer.zero_grad()
    job.accelerator.backward(job.model(torch.ones(4, 3)), gradient=torch.full((4, 1), 0.5))
    torch.testing.assert_close(job.model.bias.grad, torch.tensor([2.0]))
    with without_a_loss():
        job.optimizer.step()
    assert job.felt == []


def test_a_torch_optimizer_in_the_same_accelerator_trains_as_it_does_without_emo_hf() -> None:
    untapped = Accelerator.backward
    alone = Job(4, make=torch.optim.AdamW)
    alone.train()
    EmoNavi(parameters())  # puts the tap in place
    assert Accelerator.backward is not untapped
    tapped = Job(4, make=torch.optim.AdamW)
    tapped.train()
    assert_identical(dict(tapped.model.state_dict()), dict(alone.model.state_dict()))


def test_the_warning_of_a_missing_loss_points_past_accelerate_at_the_users_line() -> None:
    job = Job()
    job.accelerator.prepare(torch.optim.lr_scheduler.LambdaLR(job.inner, lambda step: 1.0))
    with without_a_loss() as caught:
        job.optimizer.step()
    line = linecache.getline(__file__, caught[0].lineno).strip()
    assert (caught[0].filename, line) == (__file__, "job.optimizer.step()")


def test_micro_batches_whose_gradients_are_not_in_the_parameters_yet_are_all_counted() -> None:
    """FSDP2 without gradient synchronisation, and DeepSpeed, keep them elsewhere until the last micro-batch."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    with one_rank():
        model: Any = nn.Linear(3, 1)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        inner = EmoNavi(model.parameters())
        optimizer = accelerator.prepare(inner)
        for target in (1.0, 2.0, 6.0):
            with accelerator.accumulate(model):
                model.set_requires_gradient_sync(accelerator.sync_gradients)
                accelerator.backward(model(torch.ones(2, 3)).sum() * 0.0 + target)
                optimizer.step()
        assert (inner.emotion.short, inner.emotion.skipped) == (pytest.approx(3.0), 0)


# Loops that accumulate by themselves, while accelerate counts to 1

N = 8


@pytest.mark.parametrize("told", [True, False])
def test_a_loop_that_divides_by_itself_feels_the_mean_as_one_that_accelerate_divides_for(told: bool) -> None:
    """The loop of transformers' scripts without a Trainer, its first step after one micro-batch included."""
    job, micro = Job(N if told else 1, batches=2 * N + 1), []
    for step, batch in enumerate(job.data):
        last = step % N == 0
        if told:
            job.accelerator.gradient_state._set_sync_gradients(last)
        loss = job.loss(batch)
        micro.append(loss.item())
        job.accelerator.backward(loss if told else loss / N)
        if last:
            job.inner.step()
            job.inner.zero_grad()
    steps = [micro[:1], *(micro[first : first + N] for first in range(1, len(micro), N))]
    assert job.felt == pytest.approx([sum(losses) / len(losses) / (1 if told else N) for losses in steps], rel=1e-5)
    assert job.inner.emotion.skipped == 0


def test_a_framework_that_says_which_micro_batch_is_the_last_has_scaled_them_for_their_sum() -> None:
    job = Job()
    for _ in range(2):
        for loss, last in ((1.0, False), (2.0, False), (0.5, True), (0.5, True)):  # the last in two passes
            job.accelerator.gradient_state._set_sync_gradients(last)
            job.accelerator.backward(job.constant(loss))
        job.step()
    assert job.felt == [4.0, 4.0]


JUMPED = (
    "The loss of a step went from 0.25 to 2 as its micro-batches went from 1 to 8: their losses, as they were "
    "scaled for backward, are summed, and the emotion feels a sudden change. Let all steps have as many "
    "micro-batches, divide by the number that a step really has, or show the losses by observe(loss, weight=1), "
    "which averages them."
)


@pytest.mark.parametrize(
    ("steps", "weight", "said"),
    [
        ([[2.0 / N] * count for count in (1, N, N, 1, N)], None, [JUMPED]),
        ([[2.0], [0.25] * 8, [0.5] * 4], None, []),  # divided by what there really are
        ([[0.25], [0.25] * 8], 1.0, []),  # averaged
        ([[2.0], [7.0, 7.0]], None, []),  # a jump, but not for that
        ([[0.0], [0.25] * 8], None, []),
        ([[float("nan")], [-0.25] * 8], None, []),
    ],
)
def test_a_summed_loss_that_jumps_with_its_micro_batches_is_warned_of_once(
    steps: list[list[float]], weight: float | None, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = EmoNavi(parameters())
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        for losses in steps:
            for loss in losses:
                optimizer.observe(loss, weight=weight)
            optimizer.step()
    assert caplog.messages == said


def test_where_a_framework_sends_the_losses_the_remedy_is_one_for_its_users(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = EmoNavi(parameters())
    for count in (N, 1):
        for number in range(count):
            optimizer.tap_loss(torch.tensor(2.0 / N), last=number == count - 1)
        optimizer.step()
    (said,) = caplog.messages
    assert "divide its sum by num_items_in_batch" in said
    assert "observe" not in said


# The norm that clipping takes


def skipping(params: Any, lr: float) -> EmoNavi:
    return EmoNavi(params, lr=lr, nonfinite="skip_step")


def guarded(params: Any, lr: float) -> Any:
    optimizer = torch.optim.AdamW(params, lr=lr)
    attach(optimizer, "settle")
    return optimizer


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize(
    ("make", "norm_type", "norms"),
    [(skipping, 1, 0), (guarded, "inf", 0), (guarded, 2, 0), (skipping, 0.5, 3)],
)
def test_after_clipping_no_other_norm_is_taken_and_one_that_is_not_finite_leaves_the_step_out(
    make: Any, norm_type: Any, norms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    judge = engine.gradients_are_finite
    monkeypatch.setattr(engine, "gradients_are_finite", lambda groups: asked.append(1) or judge(groups))
    job, moved = Job(make=make), []
    for scale in (1.0, 1.0, 1.0, float("nan"), 1.0):
        if len(moved) == 3:
            assert len(asked) == norms
        before = job.model.weight.detach().clone()
        job.accelerator.backward(job.loss() * scale)
        job.accelerator.clip_grad_norm_(job.model.parameters(), 1.0, norm_type=norm_type)
        job.optimizer.step()
        job.optimizer.zero_grad()
        moved.append(not torch.equal(job.model.weight, before))
    assert moved == [True, True, True, False, True]


# There and away again


def test_making_an_optimizer_puts_the_tap_in_place_once_and_uninstalling_takes_it_away_for_good() -> None:
    untapped = Accelerator.backward, Accelerator.prepare_model
    EmoNavi(parameters())
    tapped = Accelerator.backward
    assert tapped is not untapped[0]
    assert (tapped.__name__, tapped.__doc__) == (untapped[0].__name__, untapped[0].__doc__)
    EmoNavi(parameters())
    loss_tap.install()
    assert Accelerator.backward is tapped
    for _ in range(2):
        loss_tap.uninstall()
        EmoNavi(parameters())
        assert (Accelerator.backward, Accelerator.prepare_model) == untapped
    loss_tap.install()
    Accelerator.backward = untapped[0]  # as the undoing of a patch that was made before ours does
    job = Job()
    job.step(1.0)
    assert job.felt == [1.0]
    loss_tap.uninstall()
    assert Accelerator.backward is untapped[0]


def test_what_others_put_over_backward_survives_the_uninstalling_and_hears_no_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, calls = Job(), []
    original = Accelerator.backward

    @functools.wraps(original)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(Accelerator, "backward", theirs)
    job.step(1.0)
    assert (len(calls), job.felt) == (1, [1.0])
    loss_tap.uninstall()
    assert Accelerator.backward is theirs
    job.accelerator.backward(job.loss())
    assert job.model.bias.grad is not None
    with without_a_loss():
        job.optimizer.step()
    assert (len(calls), job.felt) == (2, [1.0])
    loss_tap.install()
    assert Accelerator.backward is theirs
    job.step(3.0)
    assert (len(calls), job.felt) == (3, [1.0, 3.0])


def test_an_environment_variable_leaves_accelerate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    untapped = Accelerator.backward, Accelerator.prepare_model
    monkeypatch.setenv("EMO_HF_TAP", "0")
    job = Job()
    assert (Accelerator.backward, Accelerator.prepare_model) == untapped
    with without_a_loss():
        job.step(1.0)
    monkeypatch.setenv("EMO_HF_TAP", "1")
    job = Job()
    job.step(1.0)
    assert job.felt == [1.0]


def test_an_optimizer_is_found_inside_of_any_number_of_wrappers() -> None:
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    inner = EmoNavi(parameters())
    assert loss_tap.unwrap(inner) is loss_tap.unwrap(Wrapper(Wrapper(inner))) is inner
    assert loss_tap.unwrap(Wrapper(torch.optim.SGD(parameters()))) is loss_tap.unwrap(None) is None
    circle = Wrapper(None)
    circle.optimizer = Wrapper(circle)
    assert loss_tap.unwrap(circle) is None
