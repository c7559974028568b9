"""Parameters in bfloat16 and float16, with and without compensation."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.optim.precision import low
from emo_hf.optim.precision.eight_bits import join
from emo_hf.optim.rules.void import Void
from tests.emo_cases import (
    OPTIMIZERS,
    assert_identical,
    each_implementation,
    each_optimizer,
    give_gradients,
    losses,
    make,
    rule_of,
)

LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def task(dtype: torch.dtype, width: int = 64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network of a dtype, and what it has to learn: a network of its kind."""
    torch.manual_seed(0)
    teacher, student = (
        nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1)),
        nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 1)),
    )
    inputs = torch.randn(1024, 16)
    return student.to(dtype), inputs, 3 * teacher(inputs).detach()


def final_error(cls: type[EmoOptimizer], dtype: torch.dtype, width: int = 64, **options: Any) -> float:
    """Mean square error after 1000 steps at a small learning rate; the weights are read in float32."""
    model, inputs, targets = task(dtype, width)
    optimizer = cls(model.parameters(), **{"lr": 1e-4, **options})
    for t in range(1000):
        batch = slice(64 * (t % 16), 64 * (t % 16) + 64)
        loss = (model(inputs[batch].to(dtype)).float() - targets[batch]).square().mean()
        optimizer.zero_grad()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((model.float()(inputs) - targets).square().mean())


@pytest.mark.parametrize(("cls", "at_least"), [(EmoNavi, 1.2), (EmoFact, 5.0), (EmoLynx, 5.0)])
def test_compensated_bfloat16_training_ends_where_float32_does_and_plain_does_not(
    cls: type[EmoOptimizer], at_least: float
) -> None:
    exact = final_error(cls, torch.float32)
    assert final_error(cls, torch.bfloat16, compensate=True) == pytest.approx(exact, rel=0.05)
    assert final_error(cls, torch.bfloat16) > at_least * exact


def low_params(dtype: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(6, 5), (7,), (2, 3, 4)]]


def train(optimizer: EmoOptimizer, steps: range) -> None:
    values = losses(steps.stop)
    for t in steps:
        give_gradients([param for group in optimizer.param_groups for param in group["params"]], t)
        optimizer.observe(values[t])
        optimizer.step()


@LOW
@each_optimizer
def test_a_compensated_run_resumes_to_the_last_bit(cls: type[EmoOptimizer], dtype: torch.dtype) -> None:
    params = low_params(dtype)
    optimizer = cls(params, lr=1e-3, compensate=True)
    train(optimizer, range(5))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_params = [nn.Parameter(param.detach().clone()) for param in params]
    resumed = cls(resumed_params, lr=1e-3, compensate=True)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    clone = copy.deepcopy(resumed)
    for one in (optimizer, resumed, clone):
        train(one, range(5, 10))
    assert_identical(optimizer.state_dict(), resumed.state_dict())
    assert_identical(optimizer.state_dict(), clone.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(params, resumed_params, strict=True))


@LOW
@each_optimizer
def test_working_on_less_at_a_time_changes_no_bit(
    cls: type[EmoOptimizer], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for elements in (1 << 18, 4):
        monkeypatch.setattr(low, "ELEMENTS_IN_CACHES", elements)
        params = low_params(dtype)
        train(cls(params, lr=1e-3, compensate=True), range(4))
        results.append(params)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@LOW
def test_emonavi_leaves_low_precision_to_the_kernel_that_needs_no_copies(dtype: torch.dtype) -> None:
    chosen, fused = low_params(dtype), low_params(dtype)
    train(EmoNavi(chosen, lr=1e-3), range(4))
    train(EmoNavi(fused, lr=1e-3, fused=True), range(4))
    assert all(torch.equal(one, other) for one, other in zip(chosen, fused, strict=True))


STATE_BYTES: list[tuple[type[EmoOptimizer], bool, int]] = [
    (EmoNavi, False, 4),
    (EmoNavi, True, 10),
    (EmoLynx, False, 2),
    (EmoLynx, True, 6),
    (EmoFact, True, 2),
]


@LOW
@pytest.mark.parametrize(("cls", "compensate", "per_element"), STATE_BYTES)
def test_the_state_takes_the_bytes_that_are_stated(
    cls: type[EmoOptimizer], compensate: bool, per_element: int, dtype: torch.dtype
) -> None:
    param = nn.Parameter(torch.ones(20, 30, dtype=dtype))
    optimizer = cls([param], compensate=compensate)
    train(optimizer, range(1))
    rows_and_columns = 4 * (20 + 30) if cls is EmoFact else 0
    size = sum(value.numel() * value.element_size() for value in optimizer.state[param].values())
    assert size == per_element * 600 + rows_and_columns


def test_float32_parameters_are_not_compensated() -> None:
    for cls in OPTIMIZERS:
        param = nn.Parameter(torch.ones(4))
        state: dict[str, Any] = {}
        for compensate in (False, True):
            optimizer = cls([param], compensate=compensate)
            train(optimizer, range(1))
            state[str(compensate)] = set(optimizer.state[param])
        assert state["True"] == state["False"]


@LOW
@pytest.mark.parametrize("how", [True, "8bit"])
@each_implementation
def test_a_parameter_that_becomes_float32_takes_up_its_compensation(
    cls: type[EmoOptimizer], implementation: str, how: Any, dtype: torch.dtype
) -> None:
    if implementation in ("sharded", "fused") or (how == "8bit" and dtype is torch.float16):
        pytest.skip("needs a mesh, moves no such parameters, or is refused")
    optimizer = make(cls, low_params(dtype), implementation, lr=1e-3, compensate=how)
    params = optimizer.param_groups[0]["params"]
    train(optimizer, range(4))
    rest = [optimizer.state[param]["compensation"].clone() for param in params]
    narrow = [param.detach().clone() for param in params]
    wide = [join(p, r) if how == "8bit" else p.float() + r for p, r in zip(narrow, rest, strict=True)]
    for param in params:
        param.data, param.grad = param.data.float(), None
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.observe(1.0)
    optimizer.step()
    if rule_of(cls) is not Void:  # which pulls the group to a size
        assert all(map(torch.equal, params, wide))
    assert all("compensation" not in optimizer.state[param] for param in params)
    for param in params:
        param.data, param.grad = param.data.to(dtype), None
    train(optimizer, range(4, 6))
    assert all(optimizer.state[param]["compensation"].dtype is rest[0].dtype for param in params)


@LOW
def test_tensors_of_unequal_strides_are_moved_in_float32_too(dtype: torch.dtype) -> None:
    """torch's fused kernel cannot take them; what does has to round no more often than it."""
    results = []
    for turned in (False, True):
        torch.manual_seed(0)
        param = nn.Parameter(torch.randn(40, 50, dtype=dtype))
        optimizer = EmoNavi([param], lr=1e-3)
        for t, loss in enumerate(losses(20)):
            give_gradients([param], t)
            if turned:
                param.grad = param.grad.t().contiguous().t()
            optimizer.observe(loss)
            optimizer.step()
        results.append(param.detach())
    same = (results[0] == results[1]).float().mean()
    assert same > 0.98
