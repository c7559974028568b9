"""Whole optimizers on Triton kernels, against their loops over one tensor at a time and the slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from emo_hf import EmoFact, EmoLynx, EmoOptimizer
from tests.emo_cases import OPTIMIZERS, lr_for, make, parameters, rule_of
from tests.optim.triton.common import DEVICE, give_gradients, run

WITH_KERNELS = list({rule_of(cls): cls for cls in OPTIMIZERS if "triton" in rule_of(cls).implementations}.values())
"""One optimizer for each rule."""

SHAPES = [(3, 4), (5,), (), (2, 3, 5, 2)]


def trained(cls: type[EmoOptimizer], name: str | None, steps: int = 4, **options: object) -> EmoOptimizer:
    params = [nn.Parameter(param.detach().to(DEVICE)) for param in parameters(SHAPES)]
    optimizer = make(cls, params, name, lr=lr_for(cls, 1e-2), **options)
    run(optimizer, steps)
    return optimizer


@pytest.mark.parametrize("cls", WITH_KERNELS)
def test_the_kernels_agree_with_the_loop_over_steps(cls: type[EmoOptimizer]) -> None:
    ours, slow = (trained(cls, name).param_groups[0]["params"] for name in ("triton", "single"))
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("options", [{"maximize": True}, {"nonfinite": "propagate"}], ids=str)
@pytest.mark.parametrize("cls", [EmoLynx])
def test_they_serve_options_that_they_do_not_know(cls: type[EmoOptimizer], options: dict[str, object]) -> None:
    ours, slow = (trained(cls, name, 2, **options).param_groups[0]["params"] for name in ("triton", "single"))
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [EmoLynx, EmoFact])
def test_compensated_parameters_go_where_float32_goes(cls: type[EmoOptimizer], dtype: torch.dtype) -> None:
    ends = []
    for name in ("triton", "single"):
        params = [nn.Parameter(param.detach().to(DEVICE, dtype)) for param in parameters(SHAPES)]
        optimizer = make(cls, params, name, lr=1e-3, compensate=True)
        run(optimizer, 2)
        ends.append([param.detach().float() + optimizer.state[param]["compensation"].float() for param in params])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("cls", WITH_KERNELS)
def test_bad_gradients_are_left_out_and_logged(cls: type[EmoOptimizer]) -> None:
    optimizer = trained(cls, "triton", 1)
    params = optimizer.param_groups[0]["params"]
    give_gradients(params, 1)
    params[0].grad[1, 2], params[1].grad[3] = math.nan, math.inf
    optimizer._rule.before_step = lambda groups, decision: None  # type: ignore[method-assign]  # Void pulls all weights
    before = params[0][1, 2].item(), params[1][3].item()
    optimizer.observe(1.0)
    optimizer.step()
    assert (params[0][1, 2].item(), params[1][3].item()) == before
    assert all(param.isfinite().all() for param in params)
    assert optimizer.metrics()["emo/nonfinite_gradients"] == 2
