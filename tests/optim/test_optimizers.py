"""The optimizers beside what torch users put around them: schedulers, hooks, loggers, the compiler."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

from emo_hf import EmoNavi, EmoOptimizer
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.rules.void import Void
from tests.emo_cases import (
    OPTIMIZERS,
    SHAPES,
    each_optimizer,
    give_gradients,
    losses,
    lr_for,
    parameters,
    rule_of,
    run,
    version_of,
)


@each_optimizer
def test_every_optimizer_learns_a_small_regression(cls: type[EmoOptimizer]) -> None:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if rule_of(cls) is Void:  # which holds the size of its first group
        groups.insert(0, {"params": [nn.Parameter(torch.ones(2))]})
    optimizer = cls(groups, lr=lr_for(cls, 0.025), weight_decay=0.0)
    seen = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    # v3.0 takes steps of next to nothing while a loss of 14 falls: that is its law.
    assert seen[-1] < (0.9 if version_of(cls).law == "v3.0" else 0.2) * seen[0]


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: CosineAnnealingLR(optimizer, 10),
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.5**step),
        lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=False),
        lambda optimizer: ReduceLROnPlateau(optimizer, patience=0),
    ],
)
def test_a_scheduler_moves_as_it_would_with_adamw(scheduler: Any) -> None:
    ours, theirs = EmoNavi(parameters(), lr=0.01), torch.optim.AdamW(parameters(), lr=0.01)
    schedulers = scheduler(ours), scheduler(theirs)
    for step in range(8):
        run(ours, range(step, step + 1))
        theirs.step()
        for each in schedulers:
            each.step(*[float(step)] * isinstance(each, ReduceLROnPlateau))
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert ours.param_groups[0]["lr"] != 0.01


def test_the_effective_rate_is_that_of_the_last_step_although_the_scheduler_moved_on() -> None:
    one, other = parameters()
    optimizer = EmoNavi([{"params": [one], "lr": 0.01}, {"params": [other], "lr": 0.5, "name": "head"}])
    assert optimizer.effective_lr == {"group_0": 0.01, "head": 0.5}
    for loss in (2.0, 1.0):
        optimizer.observe(loss)
        optimizer.step()
    c = optimizer.emotion.coefficient
    assert c > 1.0
    for group in optimizer.param_groups:
        group["lr"] *= 0.1
    assert optimizer.effective_lr == {"group_0": 0.01 * c, "head": 0.5 * c}
    optimizer.observe(2.0)
    optimizer.step()
    assert optimizer.effective_lr["head"] == pytest.approx(0.05 * optimizer.emotion.coefficient, rel=1e-15)


def test_groups_without_a_name_never_hide_a_group_that_has_taken_theirs() -> None:
    one, other = parameters()
    optimizer = EmoNavi([{"params": [one], "name": "group_1", "lr": 0.01}, {"params": [other], "lr": 0.5}])
    assert sorted(optimizer.effective_lr.values()) == [0.01, 0.5]


@pytest.mark.parametrize("dims", [0, 1, 2])
@each_optimizer
def test_a_learning_rate_may_be_a_tensor_that_is_changed_in_place(cls: type[EmoOptimizer], dims: int) -> None:
    rate = torch.tensor(0.01, dtype=torch.float64).reshape([1] * dims)
    params, twins = parameters(), parameters()
    optimizer, plain = cls(params, lr=rate), cls(twins, lr=0.01)
    run(optimizer, range(3))
    run(plain, range(3))
    rate.mul_(0.5)
    plain.param_groups[0]["lr"] = 0.005
    run(optimizer, range(3, 6))
    run(plain, range(3, 6))
    torch.testing.assert_close(params, twins)
    assert optimizer.param_groups[0]["lr"] is rate
    assert all(type(value) is float for value in optimizer.effective_lr.values())


NAMES = [
    "coefficient", "coefficient_mean", "coefficient_min", "coefficient_max", "effective_lr", "effective_lr/head",
    "scalar", "loss_short", "loss_long", "quiet", "should_stop", "observations", "skipped", "nonfinite_gradients",
]  # fmt: skip


def test_metrics_are_plain_numbers_and_tell_what_happened_since_the_last_time() -> None:
    one, other = parameters()
    optimizer = EmoNavi([{"params": [one], "lr": torch.tensor(0.01)}, {"params": [other], "lr": 0.5, "name": "head"}])
    keys = {f"emo/{name}" for name in NAMES}
    assert optimizer.metrics().keys() == keys
    coefficients = []
    for loss in losses(9):
        optimizer.observe(torch.tensor(loss))
        optimizer.step()
        coefficients.append(optimizer.emotion.coefficient)
    assert len(set(coefficients)) > 3
    values = optimizer.metrics()
    assert values.keys() == keys
    assert all(type(value) in (int, float) for value in values.values())
    assert values == pytest.approx(
        {
            "emo/coefficient": coefficients[-1],
            "emo/coefficient_mean": sum(coefficients) / 9,
            "emo/coefficient_min": min(coefficients),
            "emo/coefficient_max": max(coefficients),
            "emo/effective_lr": 0.01 * coefficients[-1],
            "emo/effective_lr/head": 0.5 * coefficients[-1],
            "emo/scalar": optimizer.emotion.scalar,
            "emo/loss_short": optimizer.emotion.short,
            "emo/loss_long": optimizer.emotion.long,
            "emo/observations": 9,
            **dict.fromkeys(("emo/nonfinite_gradients", "emo/quiet", "emo/should_stop", "emo/skipped"), 0),
        }
    )
    optimizer.observe(float("nan"))
    optimizer.step()
    values = optimizer.metrics()
    assert (values["emo/coefficient_min"], values["emo/coefficient_max"]) == (1.0, 1.0)
    assert values["emo/skipped"] == 1


def test_the_emotion_shown_is_frozen_and_does_not_move_on() -> None:
    optimizer = EmoNavi(parameters())
    run(optimizer, range(2))
    view = optimizer.emotion
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.should_stop = True  # type: ignore[misc]
    with pytest.raises(AttributeError):
        optimizer.emotion = view  # type: ignore[misc]
    run(optimizer, range(2, 3))
    assert (view.observations, optimizer.emotion.observations) == (2, 3)


def test_metrics_say_when_it_is_quiet() -> None:
    optimizer = EmoNavi(parameters())
    for _ in range(32):
        optimizer.observe(1.0)
        optimizer.step()
    values = optimizer.metrics()
    assert (values["emo/quiet"], values["emo/should_stop"]) == (1, 1)


def test_a_compiled_model_trains_with_the_same_emotion() -> None:
    def train(model: Any, optimizer: EmoOptimizer) -> list[float]:
        seen = []
        for _ in range(3):
            optimizer.zero_grad()
            loss: Tensor = model(torch.ones(2, 3)).square().mean()
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
            seen.append(optimizer.emotion.short)
        return seen

    plain, twin = nn.Linear(3, 1), nn.Linear(3, 1)
    twin.load_state_dict(plain.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = train(torch.compile(twin, backend="aot_eager"), EmoNavi(twin.parameters()))
    assert compiled == pytest.approx(train(plain, EmoNavi(plain.parameters())))


@pytest.mark.parametrize("cls", [cls for cls in OPTIMIZERS if rule_of(cls) is Navi])
def test_with_bias_correction_and_without_an_emotion_it_is_adamw(cls: type[EmoOptimizer]) -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    kwargs: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizer, adamw = cls(ours, **kwargs, bias_correction=True, emo_law="none"), torch.optim.AdamW(theirs, **kwargs)
    for step in range(12):
        run(optimizer, range(step, step + 1))
        give_gradients(theirs, step)
        adamw.step()
        if step == 5:  # the count of steps is saved
            state, optimizer = optimizer.state_dict(), cls(ours, **kwargs, bias_correction=True, emo_law="none")
            optimizer.load_state_dict(state)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert optimizer.effective_lr == {"group_0": 0.01}
