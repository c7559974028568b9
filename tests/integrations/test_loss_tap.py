"""The loss that a real Accelerator sends to backward reaches the emo optimizers that it has prepared."""

from __future__ import annotations

import functools
import linecache
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from emo_hf import EmoNavi
from emo_hf.integrations import accelerate as loss_tap
from tests.emo_cases import parameters


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its state in singletons; the tap is taken away so that each test has to put it in place."""
    take_away()
    yield
    take_away()


def take_away() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    loss_tap.uninstall()
    loss_tap._switched_off = False  # as it is in a process of its own


class Job:
    """A regression in batches of 4, the last one smaller, prepared by a real Accelerator."""

    def __init__(self, accumulation: int = 1, batches: int = 8, make: Callable[..., Any] = EmoNavi) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        inputs = torch.randn(4 * batches - 1, 3)
        data = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True) + 3.0), batch_size=4)
        model = nn.Linear(3, 1)
        self.inner = make(model.parameters(), lr=0.01)
        self.short = 0.0
        self.model, self.optimizer, self.data = self.accelerator.prepare(model, self.inner, data)

    def loss(self, batch: list[Tensor]) -> Tensor:
        loss: Tensor = (self.model(batch[0]) - batch[1]).square().mean()
        return loss

    def train(self, extra: Callable[[Tensor], None] = lambda loss: None) -> tuple[list[list[float]], list[float]]:
        """The micro-batch losses of each step, and the loss that the emotion saw for it."""
        micro: list[list[float]] = [[]]
        seen: list[float] = []
        for batch in self.data:
            with self.accelerator.accumulate(self.model):
                loss = self.loss(batch)
                micro[-1].append(loss.item())
                extra(loss)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                seen.append(self.last_loss(first=not seen))
                micro.append([])
        return micro[:-1], seen

    def last_loss(self, *, first: bool) -> float:
        """The loss of the last step, recovered from the short average."""
        short: float = self.inner.emotion.short
        loss = short if first else (short - 0.7 * self.short) / 0.3
        self.short = short
        return loss


@pytest.mark.parametrize(
    ("accumulation", "batches", "sizes"), [(1, 8, [1] * 8), (4, 8, [4, 4]), (4, 10, [4, 4, 2]), (4, 9, [4, 4, 1])]
)
def test_the_loss_of_a_step_is_the_mean_of_its_micro_batches(
    accumulation: int, batches: int, sizes: list[int]
) -> None:
    job = Job(accumulation, batches)
    micro, seen = job.train()
    assert [len(losses) for losses in micro] == sizes
    assert seen == pytest.approx([sum(losses) / len(losses) for losses in micro], rel=1e-5)
    assert (job.inner.emotion.observations, job.inner.emotion.skipped) == (len(sizes), 0)


def test_what_the_user_observes_takes_precedence_over_what_passes_by() -> None:
    job = Job()
    _, seen = job.train(extra=lambda loss: job.inner.observe(loss.detach() * 0.0 + 42.0))
    assert seen == pytest.approx([42.0] * 8)


def test_a_closure_whose_backward_is_tapped_counts_its_loss_once() -> None:
    job = Job()

    def closure() -> Tensor:
        job.optimizer.zero_grad()
        loss = job.loss(batch)
        job.accelerator.backward(loss)
        return loss

    batch = next(iter(job.data))
    expected = job.loss(batch).item()
    job.optimizer.step(closure)
    assert job.inner.emotion.short == pytest.approx(expected)
    assert job.inner.emotion.observations == 1


def test_every_emo_optimizer_of_the_accelerator_hears_the_loss_and_those_of_others_do_not() -> None:
    accelerator = Accelerator(cpu=True)
    outsider = EmoNavi(parameters())
    models = [nn.Linear(2, 1), nn.Linear(2, 1)]
    inner = [EmoNavi(models[0].parameters()), EmoNavi(models[1].parameters())]
    prepared = accelerator.prepare(*inner)
    loss = sum((model(torch.ones(1, 2)).square().sum() for model in models), torch.tensor(0.0))
    accelerator.backward(loss)
    for optimizer in prepared:
        optimizer.step()
    assert [optimizer.emotion.short for optimizer in inner] == [loss.item()] * 2
    with pytest.warns(RuntimeWarning, match="without a loss"):
        outsider.step()


def test_a_torch_optimizer_in_the_same_accelerator_trains_as_it_does_without_emo_hf() -> None:
    untapped = Accelerator.backward
    alone = Job(4, make=torch.optim.AdamW)
    alone.last_loss = lambda *, first: 0.0  # type: ignore[method-assign]
    alone.train()
    EmoNavi(parameters())  # puts the tap in place
    assert Accelerator.backward is not untapped
    tapped = Job(4, make=torch.optim.AdamW)
    tapped.last_loss = lambda *, first: 0.0  # type: ignore[method-assign]
    tapped.train()
    torch.testing.assert_close(dict(tapped.model.state_dict()), dict(alone.model.state_dict()), rtol=0.0, atol=0.0)


def test_the_tap_changes_no_gradient() -> None:
    job = Job()
    batch = next(iter(job.data))
    loss = job.loss(batch)
    expected = torch.autograd.grad(loss, list(job.model.parameters()), retain_graph=True)
    job.accelerator.backward(loss=loss)
    torch.testing.assert_close([param.grad for param in job.model.parameters()], list(expected))


def test_backward_with_a_gradient_of_several_elements_is_left_to_torch() -> None:
    job = Job()
    outputs = job.model(torch.ones(4, 3))
    job.accelerator.backward(outputs, gradient=torch.full((4, 1), 0.5))
    torch.testing.assert_close(job.model.bias.grad, torch.tensor([2.0]))
    with pytest.warns(RuntimeWarning, match="without a loss"):
        job.optimizer.step()
    assert job.inner.emotion.observations == 0


@pytest.mark.parametrize("scheduled", [False, True])
def test_the_warning_of_a_missing_loss_points_past_accelerate_at_the_users_line(scheduled: bool) -> None:
    job = Job()
    if scheduled:
        job.accelerator.prepare(torch.optim.lr_scheduler.LambdaLR(job.inner, lambda step: 1.0))
    with pytest.warns(RuntimeWarning, match="without a loss") as caught:
        job.optimizer.step()
    line = linecache.getline(__file__, caught[0].lineno).strip()
    assert (caught[0].filename, line) == (__file__, "job.optimizer.step()")


def test_a_skipped_batch_does_not_leak_into_the_next_step() -> None:
    job = Job()
    batches = iter(job.data)
    job.accelerator.backward(job.loss(next(batches)) + 1000.0)
    job.optimizer.zero_grad()  # the user thought better of it
    loss = job.loss(next(batches))
    job.accelerator.backward(loss)
    job.optimizer.step()
    assert job.inner.emotion.short == pytest.approx(loss.item())
    assert job.inner.emotion.skipped == 1


def test_an_fp16_overflow_takes_its_loss_along() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # as mixed_precision="fp16" has it on a GPU
    model = nn.Linear(2, 1)
    inner = EmoNavi(model.parameters())
    optimizer = accelerator.prepare(inner)
    seen = []
    for target, overflow in ((1.0, False), (50.0, True), (2.0, False)):
        loss = (model(torch.ones(1, 2)) - target).square().sum()
        accelerator.backward(loss)
        if overflow:
            model.bias.grad = torch.tensor([torch.inf])
        else:
            seen.append(loss.item())
        optimizer.step()
        assert optimizer.step_was_skipped == overflow
        optimizer.zero_grad()
    assert inner.emotion.short == pytest.approx(0.3 * seen[1] + 0.7 * seen[0])
    assert (inner.emotion.observations, inner.emotion.skipped) == (2, 1)


def test_micro_batches_whose_gradients_are_not_in_the_parameters_yet_are_all_counted(tmp_path: Path) -> None:
    """FSDP2 without gradient synchronisation, and DeepSpeed, keep them elsewhere until the last micro-batch."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model: Any = nn.Linear(3, 1)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        inner = EmoNavi(model.parameters())
        optimizer = accelerator.prepare(inner)
        for target in (1.0, 2.0, 6.0):
            with accelerator.accumulate(model):
                model.set_requires_gradient_sync(accelerator.sync_gradients)
                accelerator.backward(model(torch.ones(2, 3)).sum() * 0.0 + target)
                optimizer.step()
        assert inner.emotion.short == pytest.approx(3.0)
        assert inner.emotion.skipped == 0
    finally:
        destroy_process_group()


def test_making_an_optimizer_puts_the_tap_in_place_once_and_uninstalling_takes_it_away() -> None:
    original = Accelerator.backward
    EmoNavi(parameters())
    tapped = Accelerator.backward
    assert tapped is not original
    EmoNavi(parameters())
    loss_tap.install()
    assert Accelerator.backward is tapped
    loss_tap.uninstall()
    assert Accelerator.backward is original
    loss_tap.uninstall()
    assert Accelerator.backward is original


def with_a_count(method: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """What another library puts over a method of accelerate, politely."""

    @functools.wraps(method)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(method.__name__)
        return method(*args, **kwargs)

    return counted


def test_what_others_put_over_backward_survives_the_uninstalling_and_hears_no_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, calls = Job(), list[str]()
    theirs = with_a_count(Accelerator.backward, calls)
    monkeypatch.setattr(Accelerator, "backward", theirs)
    batch = next(iter(job.data))
    job.accelerator.backward(job.loss(batch))
    job.optimizer.step()
    assert (len(calls), job.inner.emotion.observations) == (1, 1)

    loss_tap.uninstall()
    assert Accelerator.backward is theirs
    job.optimizer.zero_grad()
    job.accelerator.backward(job.loss(batch))
    assert job.model.bias.grad is not None
    with pytest.warns(RuntimeWarning, match="without a loss"):
        job.optimizer.step()
    assert (len(calls), job.inner.emotion.observations) == (2, 1)

    loss_tap.install()
    assert Accelerator.backward is theirs
    job.accelerator.backward(job.loss(batch))
    job.optimizer.step()
    assert (len(calls), job.inner.emotion.observations) == (3, 2)


def test_uninstalling_is_for_good_until_somebody_installs_the_tap_again() -> None:
    untapped = Accelerator.backward, Accelerator.prepare_model
    Job()
    loss_tap.uninstall()
    Job()
    assert (Accelerator.backward, Accelerator.prepare_model) == untapped
    loss_tap.install()
    _, seen = Job().train()
    assert len(seen) == 8


def test_the_tap_comes_back_where_somebody_has_put_the_original_back() -> None:
    untapped = Accelerator.backward
    Job()
    Accelerator.backward = untapped  # as the undoing of a patch that was made before ours does
    job = Job()
    job.train()
    assert job.inner.emotion.observations == 8
    loss_tap.uninstall()
    assert Accelerator.backward is untapped


def test_an_environment_variable_leaves_accelerate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    untapped = Accelerator.backward, Accelerator.prepare_model
    monkeypatch.setenv("EMO_HF_TAP", "0")
    job = Job()
    assert (Accelerator.backward, Accelerator.prepare_model) == untapped
    job.accelerator.backward(job.loss(next(iter(job.data))))
    with pytest.warns(RuntimeWarning, match="without a loss"):
        job.optimizer.step()
    monkeypatch.setenv("EMO_HF_TAP", "1")
    job = Job()
    job.train()
    assert job.inner.emotion.observations == 8


def test_the_tapped_backward_looks_like_the_original() -> None:
    original = Accelerator.backward
    loss_tap.install()
    assert (Accelerator.backward.__name__, Accelerator.backward.__doc__) == (original.__name__, original.__doc__)


def test_an_optimizer_is_found_inside_of_any_number_of_wrappers() -> None:
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    inner = EmoNavi(parameters())
    assert loss_tap.unwrap(inner) is inner
    assert loss_tap.unwrap(Wrapper(Wrapper(inner))) is inner
    assert loss_tap.unwrap(Wrapper(torch.optim.SGD(parameters()))) is None
    assert loss_tap.unwrap(None) is None
    circle = Wrapper(None)
    circle.optimizer = Wrapper(circle)
    assert loss_tap.unwrap(circle) is None


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_optimizer_made_before_accelerate_was_imported_is_wired_when_it_is_prepared() -> None:
    out = python("""
        import sys, torch
        from emo_hf import EmoNavi
        model = torch.nn.Linear(2, 1)
        inner = EmoNavi(model.parameters())
        assert "accelerate" not in sys.modules and "transformers" not in sys.modules
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, inner)
        loss = model(torch.ones(1, 2)).square().sum() + 1
        accelerator.backward(loss)
        optimizer.step()
        print(inner.emotion.short == loss.item())
    """)
    assert out.strip() == "True"


def test_the_torch_only_core_never_imports_accelerate() -> None:
    out = python("""
        import sys, torch
        from emo_hf import EmoLynx
        param = torch.nn.Parameter(torch.ones(2))
        optimizer = EmoLynx([param])
        param.grad = torch.ones(2)
        optimizer.observe(1.0)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        print([name for name in ("accelerate", "transformers", "peft", "datasets") if name in sys.modules])
    """)
    assert out.strip() == "[]"
