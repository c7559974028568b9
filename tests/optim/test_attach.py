"""An emotion attached to an optimizer of others: what it scales, what it refuses, what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer

from emo_hf import EmoNavi, attach
from emo_hf.laws import law_names
from tests.emo_cases import ScalarReads, assert_identical, losses, parameters
from tests.optim.attached import (
    MAKERS,
    SHAPES,
    STEPS,
    attached,
    build,
    felt,
    params_of,
    rates,
    run,
    scaled_by_hand,
    traces,
    weights,
)


@pytest.mark.parametrize(
    ("name", "law"), [(name, "v3.1") for name in MAKERS] + [("adamw", law) for law in law_names() if law != "v3.1"]
)
def test_a_step_is_that_of_rates_multiplied_by_hand_and_leaves_the_very_objects_that_they_were(
    name: str, law: str
) -> None:
    (optimizer, handle), twin = attached(name, law), build(name)
    before = rates(optimizer)
    values = [float(lr) for lr in before]
    for t in range(STEPS):
        run(optimizer, handle, range(t, t + 1))
        assert all(now is lr for now, lr in zip(rates(optimizer), before, strict=True))
        assert [float(lr) for lr in before] == values
        factor = handle.emotion.coefficient
        assert list(handle.effective_lr.values()) == pytest.approx([value * factor for value in values])
    assert handle.emotion == scaled_by_hand(twin, losses(STEPS), law)
    assert_identical(weights(optimizer), weights(twin))


@pytest.mark.parametrize("name", ["adamw", "adamw of rate tensors"])
def test_the_rate_of_v3_9_has_a_floor_where_the_users_is_not_zero(name: str) -> None:
    optimizer, handle = attached(name, "v3.9")
    for group, lr in zip(optimizer.param_groups, (1e-6, 0.0), strict=True):
        group["lr"] = torch.tensor(lr) if isinstance(group["lr"], torch.Tensor) else lr
    before = weights(optimizer)
    run(optimizer, handle, range(1))
    assert handle.effective_lr == pytest.approx({"group_0": 1e-8, "rest": 0.0})
    assert [not torch.equal(a, b) for a, b in zip(before, weights(optimizer), strict=True)] == [True, True, False]


@pytest.mark.parametrize("law", ["v3.1", "v3.9"])
def test_rates_that_are_tensors_are_scaled_without_being_read(law: str) -> None:
    counts = []
    for optimizer, handle in ((build("adamw of rate tensors"), None), attached("adamw of rate tensors", law)):
        run(optimizer, handle, range(1))
        with ScalarReads() as reads:
            run(optimizer, handle, range(1, 4))
        counts.append(reads.count)
    assert counts[1] == counts[0]


def test_an_optimizer_without_rates_in_its_groups_is_felt_for_but_not_scaled(caplog: pytest.LogCaptureFixture) -> None:
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    optimizer, twin = adafactor(parameters(SHAPES)), adafactor(parameters(SHAPES))
    handle = attach(optimizer)
    assert "scales nothing there" in caplog.text
    run(optimizer, handle, range(STEPS))
    run(twin, None, range(STEPS))
    assert_identical(weights(optimizer), weights(twin))
    assert (rates(optimizer), handle.effective_lr) == ([None], {})
    assert handle.metrics()["emo/observations"] == STEPS


def test_a_scale_that_is_a_learning_rate_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    attach(torch.optim.AdamW(parameters(), lr=5e-5), "v3.9")
    assert "takes the optimizer's as a scale around 1. With lr=5e-05" in caplog.text
    caplog.clear()
    warm = torch.optim.AdamW(parameters(), lr=0.1)
    lr_scheduler.LambdaLR(warm, lambda step: step / 10)  # warm-up begins at 0
    attach(warm, "v3.9")
    attach(torch.optim.AdamW(parameters(), lr=5e-5), "v3.1")
    assert not caplog.text


def test_a_nan_loss_leaves_a_step_as_it_is_and_without_any_it_warns_once_at_the_callers_line() -> None:
    (optimizer, handle), twin = attached(), build()
    shown = [*losses(4), math.nan, *losses(10)[5:]]
    run(optimizer, handle, range(10), shown)
    assert handle.emotion == scaled_by_hand(twin, shown)
    assert (handle.emotion.observations, handle.emotion.skipped) == (9, 1)
    with pytest.warns(RuntimeWarning, match=r"AdamW.step\(\) was called without a loss") as caught:
        run(optimizer, None, range(10, 13))
    run(twin, None, range(10, 13))
    assert [warning.filename for warning in caught] == [run.__code__.co_filename], "once, at the line of the caller"
    assert_identical(weights(optimizer), weights(twin))
    for part in (1.0, 2.0, 3.0):
        handle.observe(torch.tensor(part) / 4)
    optimizer.step()
    assert handle.emotion.short == felt([*shown, 1.5]).short, "micro-batches are added up"


def test_the_handle_names_groups_also_those_added_later_and_logs_plain_numbers() -> None:
    optimizer, handle = attached("adamw of rate tensors")
    other = attach(build("sgd"), "v3.9", sync="local", stopcoef=0.5, notify=False)
    assert handle.effective_lr == pytest.approx({"group_0": 0.01, "rest": 0.002})
    run(optimizer, handle, range(2))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "lr": 1.0, "name": "late"})
    assert set(handle.effective_lr) == {"group_0", "rest", "late"}
    run(optimizer, handle, range(2, 7))
    assert handle.effective_lr["late"] == handle.emotion.coefficient != 1.0
    assert rates(optimizer)[2] == 1.0
    assert [saved["emotion"]["observations"] for saved in optimizer.state_dict()["param_groups"]] == [7] * 3
    values = handle.metrics()
    assert values["emo/effective_lr/rest"] == pytest.approx(0.002 * handle.emotion.coefficient)
    assert values["emo/coefficient_min"] < values["emo/coefficient_max"]
    assert all(type(value) in (int, float) for value in values.values())
    optimizer.param_groups = [{"params": params_of(optimizer), **optimizer.defaults}]
    run(optimizer, handle, range(7, 9))
    assert (handle.emotion.observations, other.emotion.observations) == (9, 0)
    assert (handle.emo_sync, other.emo_sync, other._engine.law.stopcoef) == ("global", "local", 0.5)


@pytest.mark.parametrize("scheduled", [False, True])
def test_detach_leaves_nothing_behind_but_what_was_felt(scheduled: bool) -> None:
    optimizer, twin = build(), build()
    if scheduled:  # it puts a step() of its own in the optimizer's
        lr_scheduler.ConstantLR(optimizer, 1.0)
        lr_scheduler.ConstantLR(twin, 1.0)
    before = traces(optimizer)
    handle = attach(optimizer)
    run(optimizer, handle, range(6))
    handle.detach()
    handle.detach()
    assert traces(optimizer) == before
    assert handle.emotion == scaled_by_hand(twin, losses(6))
    run(optimizer, None, range(6, 8))
    run(twin, None, range(6, 8))
    assert_identical(weights(optimizer), weights(twin))
    assert_identical(optimizer.state_dict(), twin.state_dict())
    assert attach(optimizer).emotion.observations == 0


def test_what_others_have_put_over_the_methods_stays_when_it_is_taken_off_and_put_back() -> None:
    optimizer, first = attached()
    calls = []

    def noted(name: str, below: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (calls.append(name), below(*args))[1]

    for name in ("zero_grad", "step"):
        setattr(optimizer, name, noted(name, getattr(optimizer, name)))
    first.detach()
    run(optimizer, None, range(2))
    optimizer.zero_grad()
    assert calls == ["step", "step", "zero_grad"]
    assert all(param.grad is None for param in params_of(optimizer))
    second = attach(optimizer)
    run(optimizer, second, range(2))
    loss = params_of(optimizer)[0].sum() * 0.0 + 1000.0
    second.observe(loss)
    loss.backward()
    optimizer.zero_grad()
    assert (second.emotion.observations, second.emotion.skipped) == (2, 1)
    assert (first.emotion.observations, first.emotion.skipped) == (0, 0)
    assert calls == ["step", "step", "zero_grad"] * 2


class Wrapper:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def test_it_reaches_into_wrappers_and_says_nothing_where_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = build()
    assert attach(Wrapper(Wrapper(optimizer))).optimizer is optimizer
    assert not caplog.records


@pytest.mark.parametrize(
    ("make", "arguments", "error", "said"),
    [
        (lambda: None, {}, TypeError, "attach takes a torch.optim.Optimizer.*got NoneType.*Attach to the optimizer"),
        (lambda: Wrapper(3), {}, TypeError, "attach takes a torch.optim.Optimizer.*got int"),
        (lambda: EmoNavi(parameters()), {}, ValueError, "EmoNavi has an emotion of its own.*emo_law='v3.1'"),
        (lambda: attach(build()).optimizer, {}, ValueError, r"AdamW has an emotion already: detach\(\) it first"),
        (lambda: torch.optim.LBFGS(parameters()), {}, TypeError, "LBFGS evaluates the loss many times.*use an optim"),
        (build, {"law": "v9"}, ValueError, "emo_law must be one of v3.0, .*none, got 'v9'"),
        (build, {"sync": "some"}, ValueError, "must be one of global, local, got 'some'"),
        (build, {"patience": 3}, TypeError, "the law v3.1 has no option patience"),
        (build, {"law": "v3.9", "stopcoef": -1}, ValueError, "stopcoef=-1 is not acceptable"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out_and_nothing_is_attached(
    make: Callable[[], Any], arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    optimizer = make()
    before = traces(optimizer) if isinstance(optimizer, Optimizer) else None
    with pytest.raises(error, match=said):
        attach(optimizer, **arguments)
    assert before is None or traces(optimizer) == before
