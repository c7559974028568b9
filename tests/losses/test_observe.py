"""How a loss gets into an optimizer: `observe`, a closure, or not at all."""

from __future__ import annotations

import dataclasses
import linecache
import math
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emo_hf import EmoFact, EmoNavi, EmoOptimizer
from tests.emo_cases import each_optimizer, give_gradients, parameters


@pytest.fixture
def optimizer() -> EmoOptimizer:
    params = parameters()
    give_gradients(params, 0)
    return EmoNavi(params)


@pytest.mark.parametrize(
    "loss",
    [
        2.5,
        np.float32(2.5),
        np.float64(2.5),
        np.array(2.5),
        torch.tensor(2.5),
        torch.tensor([2.5]),
        torch.tensor([[[2.5]]], dtype=torch.float64),
        torch.tensor(2.5, dtype=torch.float16),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.tensor(2.5, requires_grad=True),
        nn.Parameter(torch.tensor([2.5])),
        torch.tensor([9.0, 2.5, 9.0])[1],
    ],
    ids=lambda loss: f"{type(loss).__name__}-{getattr(loss, 'dtype', '')}-{tuple(getattr(loss, 'shape', ()))}",
)
def test_any_number_and_any_tensor_of_one_element_is_a_loss(optimizer: EmoOptimizer, loss: Any) -> None:
    optimizer.observe(loss)
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (2.5, 1)


@pytest.mark.parametrize("loss", [3, np.int64(3), torch.tensor(3), torch.tensor([3], dtype=torch.uint8)])
def test_whole_numbers_are_losses_too(optimizer: EmoOptimizer, loss: Any) -> None:
    optimizer.observe(loss)
    optimizer.step()
    assert optimizer.emotion.short == 3.0


def test_a_double_loss_keeps_its_digits(optimizer: EmoOptimizer) -> None:
    optimizer.observe(torch.tensor(0.1, dtype=torch.float64))
    optimizer.step()
    assert optimizer.emotion.short == 0.1


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.tensor([1.0, 2.0]), ValueError, r"loss must be a scalar.*\(2,\).*mean"),
        (torch.ones(2, 0), ValueError, r"loss must be a scalar.*\(2, 0\)"),
        (np.array([1.0, 2.0]), ValueError, r"loss must be a scalar.*1\..*2\."),
        (torch.tensor(1 + 2j), TypeError, "loss must be real.*complex64"),
        (1 + 2j, TypeError, r"loss must be.*complex.*1\+2j"),
        (np.complex64(1 + 2j), TypeError, r"loss must be.*complex.*1\+2j"),
        ("2.5", TypeError, "loss must be a number or a tensor.*str.*2.5"),
        (None, TypeError, "loss must be a number or a tensor.*None"),
        ([2.5], TypeError, "loss must be a number or a tensor.*list"),
        ({"loss": 1.0}, TypeError, "loss must be a number or a tensor.*dict"),
    ],
)
def test_anything_else_is_refused_by_name_and_forgotten(
    optimizer: EmoOptimizer, loss: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        optimizer.observe(loss)
    optimizer.observe(2.0)
    optimizer.step()
    assert optimizer.emotion.short == 2.0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(optimizer: EmoOptimizer, weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight must be a positive number, got {weight}"):
        optimizer.observe(1.0, weight=weight)


def test_an_observed_loss_keeps_no_graph_alive(optimizer: EmoOptimizer) -> None:
    hidden = nn.Parameter(torch.ones(3)) * 2
    loss = hidden.square().sum()
    alive = weakref.ref(hidden)
    optimizer.observe(loss)
    del hidden, loss
    assert alive() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_what_happens_to_the_loss_afterwards_does_not_matter(optimizer: EmoOptimizer, dtype: torch.dtype) -> None:
    loss = torch.tensor(2.0, dtype=dtype)
    optimizer.observe(loss)
    loss.div_(4)
    optimizer.step()
    assert optimizer.emotion.short == 2.0


def test_observing_does_not_touch_the_loss_or_its_gradients(optimizer: EmoOptimizer) -> None:
    weight = nn.Parameter(torch.tensor(3.0))
    loss = weight * 2
    optimizer.observe(loss)
    loss.backward()
    assert weight.grad == 2.0
    assert loss == 6.0


def test_micro_batch_losses_of_one_step_are_summed_as_they_were_scaled(optimizer: EmoOptimizer) -> None:
    for loss in (torch.tensor(1.0), 0.5, torch.tensor([0.25], dtype=torch.bfloat16), torch.tensor(2.0).double()):
        optimizer.observe(loss)
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (3.75, 1)


def test_weighted_micro_batches_are_averaged_by_their_weights(optimizer: EmoOptimizer) -> None:
    optimizer.observe(1.0, weight=3)
    optimizer.observe(torch.tensor(5.0), weight=1)
    optimizer.step()
    assert optimizer.emotion.short == 2.0


def test_each_step_has_its_own_losses(optimizer: EmoOptimizer) -> None:
    for loss in (4.0, 3.0):
        optimizer.observe(loss, weight=2)
        optimizer.step()
    assert optimizer.emotion.long == pytest.approx(0.01 * 3.0 + 0.99 * 4.0)
    assert optimizer.emotion.observations == 2


def test_one_step_advances_the_emotion_once_whatever_the_number_of_groups() -> None:
    params = parameters()
    give_gradients(params, 0)
    optimizer = EmoFact([{"params": [param]} for param in params])
    optimizer.observe(2.0)
    optimizer.step()
    assert optimizer.emotion.observations == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_makes_the_step_neutral_and_is_counted(bad: float) -> None:
    params, twins = parameters(), parameters()
    with_bad, neutral = EmoNavi(params), EmoNavi(twins)
    for optimizer, loss in ((with_bad, torch.tensor(bad)), (neutral, torch.tensor(1.0))):
        give_gradients(params, 0)
        give_gradients(twins, 0)
        optimizer.observe(loss)
        optimizer.step()
    torch.testing.assert_close(params, twins, rtol=0.0, atol=0.0)
    assert (with_bad.emotion.skipped, with_bad.emotion.observations, with_bad.emotion.short) == (1, 0, 0.0)


@pytest.mark.parametrize("loss", [10**400, -(10**400)], ids=["huge", "hugely negative"])
def test_a_number_beyond_the_range_of_a_double_is_skipped_as_an_infinite_one_is(
    optimizer: EmoOptimizer, loss: int
) -> None:
    optimizer.observe(loss)
    optimizer.step()
    assert (optimizer.emotion.observations, optimizer.emotion.skipped) == (0, 1)
    assert all(param.isfinite().all() for param in optimizer.param_groups[0]["params"])


@each_optimizer
def test_what_is_logged_after_a_loss_that_is_not_finite_is_what_the_step_was_taken_with(
    cls: type[EmoOptimizer],
) -> None:
    optimizer = cls(parameters(), lr=0.5)
    for step, loss in enumerate((4.0, 2.0, 3.5, math.nan)):
        give_gradients(optimizer.param_groups[0]["params"], step)
        optimizer.observe(loss)
        optimizer.step()
    logged = optimizer.metrics()
    neutral = optimizer._engine.law.neutral()
    assert logged["emo/coefficient"] == neutral.coefficient == optimizer.emotion.coefficient
    assert logged["emo/effective_lr"] == 0.5 * logged["emo/coefficient"]
    assert logged["emo/scalar"] == 0.0
    if optimizer.emotion.law != "v3.9":  # whose rate is made from losses, and stays what they have made of it
        assert logged["emo/coefficient"] == 1.0


@each_optimizer
@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad])
def test_a_closure_runs_with_gradients_enabled_and_its_loss_is_observed(cls: type[EmoOptimizer], outer: Any) -> None:
    model = nn.Linear(3, 1)
    optimizer = cls(model.parameters())
    seen: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        seen.append(loss)
        return loss

    before = model.weight.detach().clone()
    with outer():
        returned: Any = optimizer.step(closure)  # type: ignore[arg-type]
    assert returned is seen[0]
    assert len(seen) == 1
    assert optimizer.emotion.short == pytest.approx(seen[0].item(), rel=1e-15)  # some laws begin with 0.3·L + 0.7·L
    assert not torch.equal(model.weight, before)


def test_a_closure_may_return_a_plain_number(optimizer: EmoOptimizer) -> None:
    assert optimizer.step(lambda: 1.5) == 1.5
    assert optimizer.emotion.short == 1.5


def test_a_closure_that_observes_is_not_observed_a_second_time(optimizer: EmoOptimizer) -> None:
    def closure() -> float:
        optimizer.observe(2.0)
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (2.0, 1)


def test_a_closure_that_returns_nothing_may_observe(optimizer: EmoOptimizer) -> None:
    assert optimizer.step(lambda: optimizer.observe(2.0)) is None  # type: ignore[arg-type, return-value]
    assert optimizer.emotion.short == 2.0


def test_the_loss_of_a_closure_is_judged_like_any_other(optimizer: EmoOptimizer) -> None:
    with pytest.raises(ValueError, match="loss must be a scalar"):
        optimizer.step(lambda: torch.ones(2))  # type: ignore[arg-type, return-value]


def unfed_step(optimizer: EmoOptimizer, step: int) -> None:
    give_gradients(optimizer.param_groups[0]["params"], step)
    optimizer.step()


@each_optimizer
def test_a_step_without_a_loss_is_neutral_and_warns_once_with_the_remedy(cls: type[EmoOptimizer]) -> None:
    params, twins = parameters(), parameters()
    unfed, fed = cls(params, use_shadow=True), cls(twins, use_shadow=True)
    with pytest.warns(RuntimeWarning, match=rf"{cls.__name__}\.step\(\).*call observe\(loss\) before"):
        unfed_step(unfed, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unfed_step(unfed, 1)
        unfed_step(unfed, 2)
    for step in range(3):
        give_gradients(twins, step)
        fed.observe(1.0)
        fed.step()
    torch.testing.assert_close(params, twins, rtol=0.0, atol=0.0)
    assert unfed.emotion == cls(parameters()).emotion


def test_the_warning_points_at_the_line_that_called_step(optimizer: EmoOptimizer) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        optimizer.step()
    assert caught[0].filename == __file__


def test_the_warning_points_past_torchs_schedulers(optimizer: EmoOptimizer) -> None:
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # wraps step()
    with pytest.warns(RuntimeWarning) as caught:
        optimizer.step()
    scheduler.step()
    line = linecache.getline(__file__, caught[0].lineno).strip()
    assert (caught[0].filename, line) == (__file__, "optimizer.step()")


def test_every_optimizer_warns_for_itself(optimizer: EmoOptimizer) -> None:
    for each in (optimizer, EmoNavi(parameters())):
        with pytest.warns(RuntimeWarning, match="without a loss"):
            each.step()


def test_a_step_without_a_loss_does_not_disturb_a_lively_emotion(optimizer: EmoOptimizer) -> None:
    for loss in (4.0, 2.0):
        optimizer.observe(loss)
        optimizer.step()
    before = optimizer.emotion
    with pytest.warns(RuntimeWarning):
        optimizer.step()
    assert before.coefficient != 1.0
    assert optimizer.emotion == dataclasses.replace(before, scalar=0.0, coefficient=1.0)
    assert optimizer.effective_lr == {"group_0": 1e-3}


def test_the_phantom_steps_of_checkpointing_code_at_rate_zero_do_not_warn() -> None:
    params = parameters()
    give_gradients(params, 0)
    optimizer = EmoNavi(params, lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    torch.testing.assert_close(params, parameters(), rtol=0.0, atol=0.0)
    assert len(optimizer.state) == 2
    optimizer.param_groups[0]["lr"] = 1e-3
    with pytest.warns(RuntimeWarning, match="observe"):
        optimizer.step()
