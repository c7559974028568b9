"""A law with a guard leaves out steps whose gradients are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import emo_hf
from emo_hf.optim.finite import gradients_are_finite

BAD = [math.nan, math.inf, -math.inf]


def _trained(make: Any, bad: float | None, *, clip: bool = False) -> tuple[torch.nn.Linear, Any, list[torch.Tensor]]:
    """Six steps, the fourth with one spoilt element, and the weights after each."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    emo = make(model)
    optimizer = getattr(emo, "optimizer", emo)
    seen = []
    for step in range(6):
        optimizer.zero_grad()
        loss = model(torch.full((2, 4), 1.0 + step)).square().mean()
        emo.observe(loss)
        loss.backward()
        if step == 3 and bad is not None:
            model.weight.grad[1, 2] = bad  # type: ignore[index]
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append(model.weight.detach().clone())
    return model, emo, seen


def _own(model: torch.nn.Module) -> Any:
    return emo_hf.EmoNavi(model.parameters(), lr=1e-2, emo_law="settle")


def _attached(model: torch.nn.Module) -> Any:
    return emo_hf.attach(torch.optim.AdamW(model.parameters(), lr=1e-2), "settle")


@pytest.mark.parametrize("make", [_own, _attached], ids=["emonavi", "attached"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("clip", [False, True], ids=["plain", "clipped"])
def test_settle_leaves_out_the_step_of_a_gradient_that_is_not_finite(make: Any, bad: float, clip: bool) -> None:
    _, emo, seen = _trained(make, bad, clip=clip)
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[4], seen[3])
    assert seen[5].isfinite().all()
    assert emo.decisions[-1] == (4, "skipped: gradients that are not finite")
    inner = getattr(emo, "optimizer", emo)
    moments = [value for of_one in inner.state.values() for value in of_one.values() if torch.is_tensor(value)]
    assert all(value.isfinite().all() for value in moments)


def test_without_its_guard_the_gradient_does_what_it_does_in_torch() -> None:
    def unguarded(model: torch.nn.Module) -> Any:
        return emo_hf.attach(torch.optim.AdamW(model.parameters(), lr=1e-2), "settle", guard=False)

    _, _, seen = _trained(unguarded, math.nan)
    assert seen[5].isnan().any()


def test_a_clean_run_is_the_same_with_and_without_a_look_at_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, looked = _trained(_own, None)
    monkeypatch.setattr("emo_hf.emotion.settle.Settle.guards_gradients", False)
    _, _, blind = _trained(_own, None)
    assert all(map(torch.equal, looked, blind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_gradients_of_any_type_are_finite(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.zeros(1000, dtype=dtype))
    weight.grad = torch.full_like(weight, torch.finfo(dtype).max)
    optimizer = torch.optim.SGD([weight, torch.nn.Parameter(torch.zeros(0))], lr=1.0)
    assert gradients_are_finite(optimizer)
    for bad in BAD:
        weight.grad[7] = bad
        assert not gradients_are_finite(optimizer)


def test_sparse_gradients_are_looked_at_and_none_is_fine() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    assert gradients_are_finite(optimizer)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert gradients_are_finite(optimizer)
    table.weight.grad._values()[0, 0] = math.nan  # type: ignore[union-attr]
    assert not gradients_are_finite(optimizer)
