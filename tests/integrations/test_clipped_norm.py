"""The norm that accelerate's clipping takes says whether gradients are finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from emo_hf import EmoNavi, attach
from emo_hf.optim import facts


def _prepared(kind: str) -> tuple[Accelerator, torch.nn.Linear, Any]:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(4, 3)
    if kind == "attached":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attach(optimizer, "settle")
    else:
        optimizer = EmoNavi(model.parameters(), lr=1e-2, nonfinite="skip_step")
    model, prepared = accelerator.prepare(model, optimizer)
    return accelerator, model, prepared


def _step(accelerator: Accelerator, model: torch.nn.Linear, optimizer: Any, scale: float, norm_type: Any) -> None:
    optimizer.zero_grad()
    accelerator.backward(model(torch.ones(2, 4)).square().mean() * scale)
    accelerator.clip_grad_norm_(model.parameters(), 1.0, norm_type=norm_type)
    optimizer.step()


@pytest.mark.parametrize("kind", ["attached", "own"])
@pytest.mark.parametrize("norm_type", [2, 1, "inf", 0.5])
def test_after_clipping_no_other_norm_is_taken(kind: str, norm_type: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    judge = facts.gradients_are_finite
    monkeypatch.setattr(facts, "gradients_are_finite", lambda optimizer: asked.append(1) or judge(optimizer))
    job = _prepared(kind)
    for _ in range(3):
        _step(*job, 1.0, norm_type)
    assert len(asked) == (3 if norm_type == 0.5 else 0)


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize("kind", ["attached", "own"])
def test_a_norm_that_is_not_finite_leaves_the_step_out(kind: str) -> None:
    accelerator, model, optimizer = _prepared(kind)
    _step(accelerator, model, optimizer, 1.0, 2)
    before = model.weight.detach().clone()
    _step(accelerator, model, optimizer, float("nan"), 2)
    assert torch.equal(model.weight, before)
    _step(accelerator, model, optimizer, 1.0, 2)
    assert not torch.equal(model.weight, before)
