"""A step that the law leaves out moves nothing, averages nothing, and keeps the gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import emo_hf
from emo_hf import EmoOptimizer
from emo_hf.laws import LAWS
from emo_hf.laws.decision import Decision
from emo_hf.laws.law import Law
from tests.emo_cases import OPTIMIZERS, assert_identical, give_gradients, lr_for, parameters, rule_of, snapshot


class LeavesOut(Law):
    """Leaves out every third step, and says in it that the stop signal begins: rules hear of neither."""

    name = "leaves-out"

    def decide(self, loss: float) -> Decision:
        is_third = self.observations % 3 == 2
        return Decision(skip=is_third, stop_begins=is_third)


@pytest.fixture(autouse=True)
def law() -> Iterator[None]:
    LAWS[LeavesOut.name] = LeavesOut
    yield
    del LAWS[LeavesOut.name]


@pytest.mark.parametrize("cls", [cls for cls in OPTIMIZERS if not rule_of(cls).reads_scalar])
def test_a_step_that_the_law_leaves_out_moves_and_averages_nothing(cls: type[EmoOptimizer]) -> None:
    params = parameters()
    optimizer = cls(params, lr=lr_for(cls, 1e-3), emo_law=LeavesOut.name)
    moved = []
    for step in range(6):
        give_gradients(params, step)
        optimizer.observe(1.0)
        before = snapshot(optimizer)
        optimizer.step()
        after = snapshot(optimizer)
        moved.append(not all(torch.equal(one, other) for one, other in zip(before[0], after[0], strict=True)))
        if not moved[-1]:
            assert_identical(before[1]["state"], after[1]["state"])
            assert before[1]["param_groups"][0]["emotion"]["rule"] == after[1]["param_groups"][0]["emotion"]["rule"]
            assert optimizer.effective_lr == {"group_0": 0.0}
    assert moved == [True, True, False, True, True, False]


@pytest.mark.parametrize(("fused", "by_closure"), [(False, True), (True, False)])
def test_an_attached_optimizer_leaves_the_step_out_and_keeps_the_gradients(fused: bool, by_closure: bool) -> None:
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=fused)
    handle = emo_hf.attach(optimizer, law=LeavesOut.name)
    for step in range(3):
        give_gradients(params, step)
        before = [param.detach().clone() for param in params]
        gradients = [param.grad for param in params]
        if by_closure:
            optimizer.step(lambda: torch.tensor(1.0))
        else:
            handle.observe(1.0)
            optimizer.step()
        assert all(param.grad is gradient for param, gradient in zip(params, gradients, strict=True))
        same = [torch.equal(param, old) for param, old in zip(params, before, strict=True)]
        assert all(same) if step == 2 else not any(same)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}
    assert handle.effective_lr == {"group_0": 0.0}
