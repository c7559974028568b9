"""The figures that the published optimizers produce (SPEC.md, section 5), reproduced by every implementation."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emo_hf.optim import EmoOptimizer
from tests.emo_cases import IMPLEMENTATIONS, each_optimizer, make

GOLDEN = Path(__file__).parents[1] / "golden" / "v3.1"
FIRST_GROUP = 3  # tensors in it; the rest are in the second

# The single-tensor EmoNavi and EmoLynx come out bit for bit where the processor rounds as the publisher's did. A
# kernel that is handed lr·wd computes 1 − lr·wd in float32, where the published code multiplies twice: its parameters
# come out within 4e-6 instead of the 2e-6 of those that keep the published order of operations.
TOLERANCE = {"single": 2e-6, "foreach": 2e-6}
KERNEL_TOLERANCE = 4e-6

Case = dict[str, Any]


@cache
def golden(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((GOLDEN / f"{name.lower()}.json").read_text())
    return figures


def cases() -> list[Any]:
    return [
        pytest.param(cls, implementation, case, id=f"{cls.__name__}-{implementation}-{label(case)}")
        for cls, implementation in IMPLEMENTATIONS
        for case in golden(cls.__name__)["cases"]
    ]


def label(case: Case) -> str:
    return f"{case['losses_kind']}{'-shadow' if case['use_shadow'] else ''}"


def closed_form(shape: list[int], values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).float().reshape(shape)


def initial(shape: list[int], k: int, phase: float) -> Tensor:
    n = math.prod(shape)
    return closed_form(shape, [0.5 * math.sin(0.7 * (i + 1) + 1.3 * (k + 1) + phase) for i in range(n)])


def gradient(shape: list[int], k: int, t: int, phase: float) -> Tensor:
    n = math.prod(shape)
    size = 0.05 + 0.04 * math.sin(0.05 * t + k)
    return closed_form(shape, [size * math.cos(0.31 * (i + 1) * (k + 1) + 0.17 * (t + 1) + phase) for i in range(n)])


def build(cls: type[EmoOptimizer], implementation: str, case: Case) -> tuple[EmoOptimizer, list[nn.Parameter]]:
    figures = golden(cls.__name__)
    params = [nn.Parameter(initial(shape, k, case["phase"])) for k, shape in enumerate(figures["shapes"])]
    groups = [
        {"params": members, "lr": lr, "weight_decay": decay}
        for members, lr, decay in zip(
            (params[:FIRST_GROUP], params[FIRST_GROUP:]), case["lrs"], case["weight_decays"], strict=True
        )
    ]
    options = {"betas": tuple(figures["betas"]), "eps": figures["eps"], "use_shadow": case["use_shadow"]}
    return make(cls, groups, implementation, **options), params


@pytest.mark.parametrize(("cls", "implementation", "case"), cases())
def test_every_implementation_reproduces_the_published_figures(
    cls: type[EmoOptimizer], implementation: str, case: Case
) -> None:
    optimizer, params = build(cls, implementation, case)
    tolerance = TOLERANCE.get(implementation, KERNEL_TOLERANCE)
    first_stop = None
    for t, loss in enumerate(case["losses"]):
        for k, param in enumerate(params):
            param.grad = gradient(list(param.shape), k, t, case["phase"])
        optimizer.observe(loss)
        optimizer.step()
        emotion = optimizer.emotion
        assert emotion.scalar == pytest.approx(case["scalar"][t], abs=1e-9)
        assert emotion.short == pytest.approx(case["ema_short"][t], abs=1e-9)
        assert emotion.long == pytest.approx(case["ema_long"][t], abs=1e-9)
        if emotion.should_stop and first_stop is None:
            first_stop = t + 1
        for param, expected in zip(params, case["params"].get(str(t + 1), []), strict=False):
            torch.testing.assert_close(param.detach().flatten(), torch.tensor(expected), atol=tolerance, rtol=0.0)
    assert first_stop == case["first_should_stop_step"]


@each_optimizer
def test_the_figures_cover_shadow_and_self_stop(cls: type[EmoOptimizer]) -> None:
    figures = golden(cls.__name__)["cases"]
    assert {case["use_shadow"] for case in figures} == {True, False}
    assert any(case["first_should_stop_step"] for case in figures)
    assert all(len(case["params"]) >= 5 for case in figures)
