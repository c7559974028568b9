"""How a loss gets into an optimizer: `observe`, a closure, or not at all."""

from __future__ import annotations

import dataclasses
import linecache
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emo_hf import EmoClan, EmoFact, EmoNavi, EmoOptimizer, EmoSens, EmoTion, EmoVoid
from tests.emo_cases import give_gradients, parameters

each_kind = pytest.mark.parametrize("cls", [EmoNavi, EmoClan, EmoSens, EmoTion, EmoVoid])


@pytest.fixture
def optimizer() -> EmoOptimizer:
    params = parameters()
    give_gradients(params, 0)
    return EmoNavi(params)


@pytest.mark.parametrize(
    ("loss", "felt"),
    [
        *((number, 2.5) for number in (2.5, np.float32(2.5), np.float64(2.5), np.array(2.5))),
        *((torch.tensor(2.5, dtype=dtype), 2.5) for dtype in (torch.float16, torch.bfloat16, torch.float32)),
        (torch.tensor([[[2.5]]], dtype=torch.float64), 2.5),
        (nn.Parameter(torch.tensor([2.5])), 2.5),
        (torch.tensor([9.0, 2.5, 9.0])[1], 2.5),
        *((whole, 3.0) for whole in (3, np.int64(3), torch.tensor(3), torch.tensor([3], dtype=torch.uint8))),
        (torch.tensor(0.1, dtype=torch.float64), 0.1),  # to its last digit
    ],
    ids=lambda loss: f"{type(loss).__name__}-{getattr(loss, 'dtype', '')}-{tuple(getattr(loss, 'shape', ()))}",
)
def test_any_number_and_any_tensor_of_one_element_is_a_loss(optimizer: EmoOptimizer, loss: Any, felt: float) -> None:
    optimizer.observe(loss)
    if isinstance(loss, Tensor):
        loss.detach().mul_(4)  # what happens to it afterwards does not matter
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (felt, 1)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.tensor([1.0, 2.0]), ValueError, r"loss must be a scalar.*\(2,\).*mean"),
        (torch.ones(2, 0), ValueError, r"loss must be a scalar.*\(2, 0\)"),
        (np.array([1.0, 2.0]), TypeError, r"loss must be a number or a tensor.*1\..*2\."),
        (torch.tensor(1 + 2j), TypeError, "loss must be real.*complex64"),
        (1 + 2j, TypeError, r"loss must be.*complex.*1\+2j"),
        (np.complex64(1 + 2j), TypeError, r"loss must be.*complex.*1\+2j"),
        ("2.5", TypeError, "loss must be a number or a tensor.*str.*2.5"),
        (None, TypeError, "loss must be a number or a tensor.*None"),
        ([2.5], TypeError, "loss must be a number or a tensor.*list"),
    ],
)
def test_anything_else_is_refused_by_name_and_forgotten(
    optimizer: EmoOptimizer, loss: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        optimizer.observe(loss)
    if loss is not None:  # which means that a closure has observed
        with pytest.raises(error, match=message):
            optimizer.step(lambda: loss)
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"weight must be a positive number, got {weight}"):
            optimizer.observe(1.0, weight=weight)
    optimizer.observe(2.0)
    optimizer.step()
    assert optimizer.emotion.short == 2.0


def test_micro_batches_are_summed_as_they_were_scaled_or_averaged_by_their_weights_once_for_all_groups() -> None:
    params = parameters()
    give_gradients(params, 0)
    optimizer = EmoFact([{"params": [param]} for param in params])
    for loss in (torch.tensor(1.0), 0.5, torch.tensor([0.25], dtype=torch.bfloat16), torch.tensor(2.0).double()):
        optimizer.observe(loss)
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (3.75, 1)
    optimizer.observe(1.0, weight=3)
    optimizer.observe(torch.tensor(5.0), weight=1)
    optimizer.step()
    assert optimizer.emotion.long == pytest.approx(0.01 * 2.0 + 0.99 * 3.75)
    assert optimizer.emotion.observations == 2


@pytest.mark.parametrize("cls", [EmoNavi, EmoSens])
def test_a_loss_that_is_not_finite_is_counted_and_its_step_is_logged_as_it_was_taken(cls: type[EmoOptimizer]) -> None:
    for bad in (math.nan, torch.tensor(math.inf), 10**400, -(10**400)):
        optimizer = cls(parameters(), lr=0.5)
        for loss in (4.0, 2.0, 3.5):
            optimizer.observe(loss)
            optimizer.step()
        before = optimizer.emotion
        optimizer.observe(bad)
        optimizer.step()
        logged = optimizer.metrics()
        c = logged["emo/coefficient"]
        assert optimizer.emotion == dataclasses.replace(before, scalar=0.0, coefficient=c, skipped=1)
        assert (logged["emo/effective_lr"], logged["emo/scalar"]) == (0.5 * c, 0.0)
        assert (c == 1.0) is (cls is EmoNavi)  # the other's rate is made from losses: it stays what they have made it


@each_kind
def test_a_closure_runs_with_gradients_enabled_and_its_loss_is_observed(cls: type[EmoOptimizer]) -> None:
    model = nn.Linear(3, 1)
    optimizer = cls(model.parameters())
    seen: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        seen.append(loss)
        return loss

    for outer in (torch.no_grad, torch.enable_grad):
        before = model.weight.detach().clone()
        with outer():
            returned: Any = optimizer.step(closure)  # type: ignore[arg-type]
        assert returned is seen[-1]
        assert not torch.equal(model.weight, before)
    assert len(seen) == optimizer.emotion.observations == 2
    mean = 0.3 * seen[1].item() + 0.7 * seen[0].item()
    assert optimizer.emotion.short == pytest.approx(mean, rel=1e-12)  # some laws begin with 0.3·L + 0.7·L


def test_a_closure_may_return_a_number_or_observe_itself_which_wins(optimizer: EmoOptimizer) -> None:
    assert optimizer.step(lambda: 1.5) == 1.5
    assert optimizer.emotion.short == 1.5
    assert optimizer.step(lambda: optimizer.observe(1.5) or 7.0) == 7.0  # type: ignore[func-returns-value]
    assert optimizer.step(lambda: optimizer.observe(1.5)) is None  # type: ignore[arg-type, return-value]
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (pytest.approx(1.5), 3)


@each_kind
def test_a_step_without_a_usable_loss_is_neutral_and_one_without_any_warns_once_with_the_remedy(
    cls: type[EmoOptimizer],
) -> None:
    all_params = [parameters() for _ in range(3)]
    optimizers = [cls(params, use_shadow=True) for params in all_params]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            for params, optimizer, loss in zip(all_params, optimizers, (1.0, math.nan, None), strict=True):
                give_gradients(params, step)
                if loss is not None:
                    optimizer.observe(loss)
                optimizer.step()
    (said,) = caught
    assert said.category is RuntimeWarning
    assert re.search(rf"{cls.__name__}\.step\(\).*call observe\(loss\) before", str(said.message))
    for params in all_params[1:]:
        torch.testing.assert_close(params, all_params[0], rtol=0.0, atol=0.0)
    assert optimizers[2].emotion == cls(parameters()).emotion


def test_every_optimizer_warns_for_itself_at_the_line_that_called_step_and_its_lively_emotion_stays(
    optimizer: EmoOptimizer,
) -> None:
    for loss in (4.0, 2.0):
        optimizer.observe(loss)
        optimizer.step()
    before = optimizer.emotion
    assert before.coefficient != 1.0
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # wraps step()
    for each in (optimizer, EmoNavi(parameters())):
        with pytest.warns(RuntimeWarning, match="without a loss") as caught:
            each.step()
        line = linecache.getline(__file__, caught[0].lineno).strip()
        assert (caught[0].filename, line) == (__file__, "each.step()")
    scheduler.step()
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
