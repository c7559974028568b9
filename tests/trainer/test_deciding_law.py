"""A law that decides: steps are left out, evaluations and the run's length reach it, and what it says is logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import emo_hf
from emo_hf import EmoOptimizer
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import LAWS
from emo_hf.laws.decision import Decision
from emo_hf.laws.law import Law
from emo_hf.laws.metrics import NOTES
from tests import tiny
from tests.emo_cases import assert_identical, each_optimizer, give_gradients, lr_for, parameters, rule_of, snapshot


class Deciding(Law):
    """Leaves out every third step."""

    name = "deciding"

    def __init__(self) -> None:
        super().__init__()
        self.horizon: int | None = None
        self.evaluations: list[float] = []

    def decide(self, loss: float) -> Decision:
        return Decision(skip=self.observations % 3 == 2)

    def know_horizon(self, steps: int | None) -> None:
        self.horizon = steps

    def hear_evaluation(self, loss: float) -> None:
        self.evaluations.append(loss)

    @property
    def decisions(self) -> list[tuple[int, str]]:
        return [(3 * n, f"left out step {3 * n}") for n in range(1, self.observations // 3 + 1)]


@pytest.fixture(autouse=True)
def deciding() -> Iterator[None]:
    LAWS[Deciding.name] = Deciding
    yield
    del LAWS[Deciding.name]


@each_optimizer
def test_a_step_that_the_law_leaves_out_moves_and_averages_nothing(cls: type[EmoOptimizer]) -> None:
    if rule_of(cls).reads_scalar:
        pytest.skip("no other law drives this rule")
    params = parameters()
    optimizer = cls(params, lr=lr_for(cls, 1e-3), emo_law="deciding")
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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("by_closure", [False, True])
def test_an_attached_optimizer_leaves_the_step_out_and_keeps_the_gradients(fused: bool, by_closure: bool) -> None:
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=fused)
    handle = emo_hf.attach(optimizer, law="deciding")
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


@pytest.mark.parametrize("attached", [False, True])
def test_the_trainer_tells_the_law_its_length_and_its_evaluations_and_logs_its_words(
    attached: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emo_hf.register()
    try:
        changes = (
            {"optim": "adamw_torch", "callbacks": [emo_hf.EmoCallback(emotion="deciding")]}
            if attached
            else {"optim": "emonavi", "optim_args": "emo_law=deciding"}
        )
        trainer = tiny.trainer(
            tmp_path, max_steps=7, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=7,
            eval_dataset=tiny.examples(8), **changes,
        )  # fmt: skip
        with caplog.at_level(logging.WARNING):
            trainer.train()
    finally:
        emo_hf.unregister()
    law = unwrap(trainer.optimizer)._engine.law
    assert law.horizon == 7
    assert law.evaluations == [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(law.evaluations) >= 2
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert said == ["Step 3: left out step 3", "Step 6: left out step 6"]
    notes = json.loads((tmp_path / "checkpoint-7" / "trainer_state.json").read_text())["stateful_callbacks"][NOTES]
    assert notes["decisions"] == [[3, "left out step 3"], [6, "left out step 6"]]
