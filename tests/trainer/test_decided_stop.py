"""A law whose stop signal is a decision is obeyed in the same step, whatever `patience` and `min_steps` say."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import Trainer

import emo_hf
from emo_hf import EmoCallback, EmoEarlyStoppingCallback
from emo_hf.laws import LAWS
from emo_hf.laws.decision import Decision
from emo_hf.laws.law import Law
from emo_hf.laws.metrics import NOTES
from emo_hf.laws.settle import Settle
from emo_hf.trainer import decision_notes
from emo_hf.trainer.self_stop import SelfStop
from tests import tiny


class DoneAtSeven(Law):
    """Decides at its 7th loss, or at its second evaluation, that training is over."""

    name = "done-at-seven"
    decides_to_stop = True
    numbers: ClassVar[dict[str, float]] = {"evaluated": 0.0}
    evaluated: float
    last = 7

    def decide(self, loss: float) -> Decision:
        return Decision()

    def hear_evaluation(self, loss: float) -> None:
        self.evaluated += 1

    def signals_stop(self) -> bool:
        return self.observations >= self.last or self.evaluated >= 2

    @property
    def decisions(self) -> list[tuple[int, str]]:
        return [(self.observations, "done: it is enough")] if self.signals_stop() else []


@pytest.fixture(autouse=True)
def law() -> Iterator[None]:
    LAWS[DoneAtSeven.name] = DoneAtSeven
    emo_hf.register()
    yield
    emo_hf.unregister()
    del LAWS[DoneAtSeven.name]


def run(folder: Path, action: str, attached: bool, *, resume: str | None = None, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {"max_steps": 10, "logging_steps": 5, "eval_dataset": tiny.examples(8)}
    if attached:
        settings |= {
            "optim": "adamw_torch",
            "callbacks": [EmoCallback(emotion=DoneAtSeven.name, self_stop=SelfStop(action=action))],
        }
    else:
        settings |= {"optim_args": f"emo_law={DoneAtSeven.name},self_stop={action}"}
    trainer = tiny.trainer(folder, **(settings | changes))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "it is enough (" in record.message]


@pytest.mark.parametrize("attached", [False, True])
def test_stop_ends_the_run_in_the_step_of_the_decision_with_its_words(
    attached: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, "stop", attached, save_strategy="epoch", eval_strategy="epoch", warmup_steps=9)
    assert trainer.state.global_step == 7
    assert said(caplog) == ["done: it is enough (step 7, epoch 0.70): stopping."]
    assert (tmp_path / "checkpoint-7" / "trainer_state.json").is_file()
    at_the_end = [line for line in trainer.state.log_history if line["step"] == 7]
    assert [key for line in at_the_end for key in ("loss", "eval_loss") if key in line] == ["loss", "eval_loss"]
    assert next(line for line in at_the_end if "loss" in line)["emo/should_stop"] == 1


@pytest.mark.parametrize(("action", "checkpoints"), [("off", 0), ("log", 0), ("save", 1)])
@pytest.mark.parametrize("attached", [False, True])
def test_the_other_actions_are_taken_once_and_the_run_goes_on(
    attached: bool, action: str, checkpoints: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, action, attached)
    assert trainer.state.global_step == 10
    assert len(said(caplog)) == (0 if action == "off" else 1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-7"] * checkpoints


def test_a_decision_that_an_evaluation_brings_is_obeyed_before_the_next_step_and_evaluated_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(
        tmp_path, "stop", False, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=9
    )  # fmt: skip
    assert trainer.state.global_step == 4
    assert len(said(caplog)) == 1
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == [2, 4]
    notes = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["stateful_callbacks"][NOTES]
    assert notes["decisions"] == [[4, "done: it is enough"]]


def test_an_evaluation_after_training_decides_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = run(tmp_path, "stop", False, max_steps=3, eval_strategy="steps", eval_steps=3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.5)
    trainer.evaluate()
    assert not said(caplog)
    assert not trainer.state.stateful_callbacks[NOTES]["decisions"]


def test_the_early_stopping_callback_obeys_too(tmp_path: Path) -> None:
    trainer = run(tmp_path, "off", False, callbacks=[EmoEarlyStoppingCallback()])
    assert trainer.state.global_step == 7


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(("action", "step", "again"), [("stop", 5, 1), ("save", 5, 1), ("save", 7, 0), ("log", 8, 0)])
def test_a_resumed_run_does_what_the_whole_one_did(
    attached: bool, action: str, step: int, again: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saving = {"save_strategy": "steps", "save_steps": step}
    whole = run(tmp_path, action, attached, **saving)
    checkpoints = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert f"checkpoint-{step}" in checkpoints
    caplog.clear()
    resumed = run(tmp_path, action, attached, resume=str(tmp_path / f"checkpoint-{step}"), **saving)
    assert resumed.state.global_step == whole.state.global_step
    assert len(said(caplog)) == again
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == checkpoints
    assert resumed.state.stateful_callbacks[NOTES]["decisions"] == whole.state.stateful_callbacks[NOTES]["decisions"]


def test_settle_decides_and_its_signal_is_in_the_view_as_soon_as_an_evaluation_has_brought_it() -> None:
    settle = Settle(ease=False)
    for _ in range(40):
        settle.feel(1.0)
    for evaluation in (1.0, 2.0, 2.0, 2.0):
        assert not settle.view().has_decided_to_stop
        settle.hear_evaluation(evaluation)
        for _ in range(10):
            if not settle.done:
                settle.feel(1.0)
    assert settle.view().has_decided_to_stop
    assert settle.view().should_stop
    assert not LAWS["v3.1"]().view().has_decided_to_stop


def test_the_signal_of_a_law_that_does_not_decide_is_never_called_a_decision() -> None:
    law = LAWS["v3.1"]()
    for _ in range(200):
        law.feel(1.0)
    assert law.view().should_stop
    assert not law.view().has_decided_to_stop


class Spiky(DoneAtSeven):
    """Says something of each of its steps, and keeps only the last 4."""

    name = "spiky"
    last = 10**9

    @property
    def decisions(self) -> list[tuple[int, str]]:
        steps = range(max(1, self.observations - 3), self.observations + 1)
        return [(step, "started: now" if step == 2 else f"skipped: {step}") for step in steps]


def test_the_notes_keep_what_the_law_forgets_and_of_too_much_leave_out_the_oldest_spikes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LAWS, Spiky.name, Spiky)
    monkeypatch.setattr(decision_notes, "MOST", 8)
    with caplog.at_level(logging.WARNING):
        trainer = run(tmp_path, "stop", False, optim_args="emo_law=spiky", max_steps=12)
    notes = trainer.state.stateful_callbacks[NOTES]["decisions"]
    assert [step for step, _ in notes] == [2, 6, 7, 8, 9, 10, 11, 12]
    assert sum(record.message.startswith("Step ") for record in caplog.records) == 12
    assert torch.isfinite(torch.tensor(trainer.state.log_history[-1]["train_loss"]))
