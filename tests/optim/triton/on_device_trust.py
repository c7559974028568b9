"""Kernels are compared with plain torch before they are trusted. `test_kernels.py` runs this."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.optim.kernels.gpu import elementwise, fact, trust
from tests.emo_cases import make
from tests.optim.triton.common import DEVICE, run

SHAPES = [(300, 30), (7,), (40, 3, 2)]
FORMATS: dict[str, dict[str, Any]] = {"plain": {}, "8 bits": {"state": "8bit", "compensate": "8bit"}}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_found", {})


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger=trust.logger.name)
    return lambda: [record.message for record in caplog.records]


def trained(cls: type[EmoOptimizer], name: str, dtype: torch.dtype, **options: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape).to(DEVICE, dtype)) for shape in SHAPES]
    run(make(cls, params, name, lr=1e-2, **options), 2)
    return [param.detach() for param in params]


def doubled(move: Any, *args: Any, **kwargs: Any) -> None:
    where = next(i for i, value in enumerate(args) if isinstance(value, trust.Hyperparameters))
    move(*args[:where], replace(args[where], lr=2 * args[where].lr), *args[where + 1 :], **kwargs)


def keeps_what_is_not_finite(move: Any, *args: Any, **kwargs: Any) -> None:
    where = next(i for i, value in enumerate(args) if isinstance(value, trust.Hyperparameters))
    move(*args[:where], replace(args[where], left_out=None), *args[where + 1 :], **kwargs)


def wrong_at_the_end(move: Any, *args: Any, **kwargs: Any) -> None:
    move(*args, **kwargs)
    params = args[0] if isinstance(args[0], list) else args[1]
    for param in params:
        end = param.view(-1)[-100:]
        end.add_(end.abs() + 1)


WRONG = [doubled, keeps_what_is_not_finite, wrong_at_the_end]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("cls", [EmoNavi, EmoLynx, EmoFact])
def test_a_wrong_kernel_is_left_and_one_line_says_so(
    cls: type[EmoOptimizer], wrong: Any, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    for module, name in ((elementwise, "move"), (fact, "move_matrices")):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, right=right, **kwargs: wrong(right, *args, **kwargs))
    ours, plain = (trained(cls, name, torch.float32) for name in ("triton", "single"))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    kernels = {EmoFact: 2}.get(cls, 1)  # one for matrices, one for vectors
    assert len(said()) == kernels
    assert all("differs from plain PyTorch" in line for line in said())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nonfinite", ["leave_out", "propagate"])
@pytest.mark.parametrize("cls", [EmoNavi, EmoLynx, EmoFact])
def test_a_right_kernel_is_compared_once_and_trusted(
    cls: type[EmoOptimizer], nonfinite: str, dtype: torch.dtype, said: Callable[[], list[str]]
) -> None:
    for _ in range(2):
        trained(cls, "triton", dtype, nonfinite=nonfinite, compensate=dtype is torch.float16)
    assert said() == []
    assert set(trust._found.values()) == {True}
    assert len(trust._found) == (2 if cls is EmoFact else 1)


@pytest.mark.parametrize("cls", [EmoNavi, EmoLynx])
def test_it_is_compared_in_8_bits_too(cls: type[EmoOptimizer], said: Callable[[], list[str]]) -> None:
    trained(cls, "triton", torch.bfloat16, **FORMATS["8 bits"])
    assert said() == []
    assert len(trust._found) == 2  # large parameters in codes, small ones in floats


def test_a_comparison_moves_nothing_and_counts_nothing() -> None:
    param = nn.Parameter(torch.randn(50, 40).to(DEVICE))
    optimizer = make(EmoNavi, [param], "triton", lr=0.0)
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    optimizer.observe(1.0)
    optimizer.step()
    assert torch.equal(param, before)
    assert trust._found
    assert optimizer.metrics()["emo/nonfinite_gradients"] == 0
