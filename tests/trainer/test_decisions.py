"""What laws decide in a Trainer: said once, kept as data, obeyed; evaluations reach them, each once."""

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
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import LAWS
from emo_hf.laws.decision import Decision, Note
from emo_hf.laws.law import Law
from emo_hf.laws.metrics import NOTES
from emo_hf.trainer import callbacks
from emo_hf.trainer.self_stop import SelfStop
from tests import tiny


class DoneAtSeven(Law):
    """Decides at its 7th loss, or at its second evaluation, that training is over."""

    name = "done-at-seven"
    decides_to_stop = True
    numbers: ClassVar[dict[str, float]] = {"evaluated": 0.0}
    evaluated: float
    last = 7

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def decide(self, loss: float) -> Decision:
        return Decision()

    def hear_evaluation(self, loss: float) -> None:
        self.evaluated += 1
        self.heard.append(loss)

    def signals_stop(self) -> bool:
        return self.observations >= self.last or self.evaluated >= 2

    @property
    def decisions(self) -> list[Note]:
        return [Note(min(self.observations, self.last), "done", 1.0, "it is enough")] if self.signals_stop() else []


class Hears(DoneAtSeven):
    """Decides nothing."""

    name = "hears"

    def signals_stop(self) -> bool:
        return False


class Spiky(DoneAtSeven):
    """Says something of each of its steps, and keeps only the last 4."""

    name = "spiky"
    last = 10**9

    @property
    def decisions(self) -> list[Note]:
        steps = range(max(1, self.observations - 3), self.observations + 1)
        return [Note(step, "lowered" if step == 2 else "skipped", 0.123456, f"at {step}") for step in steps]


@pytest.fixture(autouse=True)
def laws() -> Iterator[None]:
    made = {law.name: law for law in (DoneAtSeven, Hears, Spiky)}
    LAWS.update(made)
    yield
    for name in made:
        del LAWS[name]


def run(
    folder: Path,
    action: str,
    attached: bool,
    *,
    law: str = DoneAtSeven.name,
    resume: str | None = None,
    **changes: Any,
) -> Trainer:
    settings: dict[str, Any] = {"max_steps": 10, "logging_steps": 5, "eval_dataset": tiny.examples(8)}
    if attached:
        own = [EmoCallback(emotion=law, self_stop=action)]
        settings |= {"optim": "adamw_torch", "callbacks": [*own, *changes.pop("callbacks", [])]}
    else:
        settings |= {"optim_args": f"emo_law={law},self_stop={action}"}
    trainer = tiny.trainer(folder, **(settings | changes))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def heard(trainer: Trainer) -> list[float]:
    return unwrap(trainer.optimizer)._engine.law.heard


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("emo_hf.trainer")]


DONE = {"step": 7, "kind": "done", "factor": 1.0, "reason": "it is enough"}
either = pytest.mark.parametrize("attached", [False, True])
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}


@either
def test_stop_ends_the_run_in_the_step_of_the_decision_and_says_so_once(
    attached: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, "stop", attached, save_strategy="epoch", eval_strategy="epoch", warmup_steps=9)
    assert trainer.state.global_step == 7
    at_end = said(caplog)[-2:]
    assert at_end == [
        "Step 7: training may end: it is enough", "The law has decided to stop (step 7, epoch 0.70): stopping."
    ]  # fmt: skip
    assert sum("it is enough" in line for line in said(caplog)) == 1
    saved = json.loads((tmp_path / "checkpoint-7" / "trainer_state.json").read_text())["stateful_callbacks"][NOTES]
    assert saved["decisions"] == [DONE]
    at_the_end = [line for line in trainer.state.log_history if line["step"] == 7]
    assert [key for line in at_the_end for key in ("loss", "eval_loss") if key in line] == ["loss", "eval_loss"]
    assert next(line for line in at_the_end if "loss" in line)["emo/should_stop"] == 1


@pytest.mark.parametrize(("action", "checkpoints"), [("off", 0), ("log", 0), ("save", 1)])
@either
def test_the_other_actions_are_taken_once_and_the_run_goes_on(
    attached: bool, action: str, checkpoints: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, action, attached)
    assert trainer.state.global_step == 10
    assert [line for line in said(caplog) if "Step 7" in line] == ["Step 7: training may end: it is enough"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-7"] * checkpoints


def test_a_decision_that_an_evaluation_brings_is_obeyed_before_the_next_step_and_evaluated_once(
    tmp_path: Path,
) -> None:
    trainer = run(tmp_path, "stop", False, **EVALUATES, save_strategy="steps", save_steps=4)
    assert trainer.state.global_step == 4
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == [2, 4]
    notes = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["stateful_callbacks"][NOTES]
    assert notes["decisions"] == [{**DONE, "step": 4}]


def test_the_early_stopping_callback_obeys_and_does_not_say_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, "log", False, callbacks=[EmoEarlyStoppingCallback()])
    assert trainer.state.global_step == 7
    assert sum("it is enough" in line or "stopping" in line for line in said(caplog)) == 2
    assert not any("may be done" in line for line in said(caplog))
    assert run(tmp_path, "log", False, callbacks=[EmoEarlyStoppingCallback()], **EVALUATES).state.global_step == 4


@either
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
    assert sum("it is enough" in line for line in said(caplog)) == again
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == checkpoints
    assert resumed.state.stateful_callbacks[NOTES]["decisions"] == [DONE]


def test_the_notes_keep_what_the_law_forgets_and_of_too_much_leave_out_the_oldest_spikes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callbacks, "MOST_NOTES", 8)
    trainer = run(tmp_path, "stop", False, law="spiky", max_steps=12)
    notes = trainer.state.stateful_callbacks[NOTES]["decisions"]
    assert [note["step"] for note in notes] == [2, 6, 7, 8, 9, 10, 11, 12]
    assert notes[0] == {"step": 2, "kind": "lowered", "factor": 0.123456, "reason": "at 2"}
    lines = [line for line in said(caplog) if line.startswith("Step ")]
    assert len(lines) == 2, "of steps that are left out the first is said, and the logs have the count"
    assert lines[1] == "Step 2: rate lowered to 0.1235 of the learning rate: at 2 (lower=false leaves the rate alone)"


# Evaluations


@either
def test_each_evaluation_in_training_is_heard_and_none_after_it(attached: bool, tmp_path: Path) -> None:
    trainer = run(tmp_path, "stop", attached, law="hears", **EVALUATES, max_steps=5, eval_on_start=True)
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert heard(trainer) == losses
    assert len(losses) == 4, "at the start, at 2, at 4 and at the end"
    trainer.evaluate()
    assert heard(trainer) == losses


def test_an_evaluation_at_the_start_of_a_resumed_run_is_not_heard_twice(tmp_path: Path) -> None:
    changes = {**EVALUATES, "eval_on_start": True, "save_strategy": "steps", "save_steps": 4, "law": "hears"}
    run(tmp_path, "stop", False, **changes)
    resumed = run(tmp_path, "stop", False, **changes, resume=str(tmp_path / "checkpoint-4"))
    by_step = {line["step"]: line["eval_loss"] for line in resumed.state.log_history if "eval_loss" in line}
    assert heard(resumed) == [by_step[6], by_step[8], by_step[10]]


SETS = {"one": tiny.examples(8, seed=1), "other": tiny.examples(8, seed=2)}


def test_of_several_sets_the_mean_is_heard_and_the_best_may_be_told_by_it(tmp_path: Path) -> None:
    trainer = run(
        tmp_path, "stop", False, law="hears", eval_dataset=SETS, **EVALUATES, save_strategy="steps", save_steps=2
    )
    lines = trainer.state.log_history
    one, other = ([line[key] for line in lines if key in line] for key in ("eval_one_loss", "eval_other_loss"))
    assert len(one) == 5
    assert heard(trainer) == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])
    assert trainer.state.best_metric == pytest.approx(min(heard(trainer)))


@pytest.mark.parametrize(("metric", "sign"), [("other_loss", 1), ("eval_other_loss", 1), ("other_odd", -1)])
def test_the_metric_for_the_best_model_is_heard_where_there_is_one(metric: str, sign: int, tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, optim_args="emo_law=hears", eval_dataset=SETS, metric_for_best_model=metric, max_steps=4, **EVALUATES
    )
    trainer.compute_metrics = lambda predicted: {"odd": float(predicted.predictions.sum())}
    trainer.train()
    key = "eval_" + metric.removeprefix("eval_")
    assert heard(trainer) == [sign * line[key] for line in trainer.state.log_history if key in line]
    assert len(heard(trainer)) == 2


class Worsens(tiny.TrainerCallback):
    """Has evaluations get better until step 4, and worse after it, since the weights grow."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step > 4:
            with torch.no_grad():
                for param in model.parameters():
                    param.mul_(3.0)


@pytest.mark.parametrize("by_callback", [False, True])
def test_a_run_that_evaluations_end_gives_the_best_model_not_the_last(
    by_callback: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "learning_rate": 3e-3}
    callbacks = [Worsens(), *([EmoEarlyStoppingCallback()] if by_callback else [])]
    trainer = run(
        tmp_path, "log" if by_callback else "stop", False, law="hears", **EVALUATES, **saving, callbacks=callbacks
    )
    assert trainer.state.best_global_step == 4
    best = min(line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
    assert sum("load_best_model_at_end is on" in line for line in said(caplog)) == 1


@either
def test_settle_ends_a_run_at_the_best_model_and_a_second_training_is_not_over_at_once(
    attached: bool, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 30, "learning_rate": 3e-3}
    trainer = run(tmp_path, "stop", attached, law="settle", **EVALUATES, **saving, callbacks=[Worsens()])
    best = trainer.state.best_global_step
    assert trainer.state.global_step == best + 6, "after three evaluations that are no better"
    (note,) = (note for note in trainer.state.stateful_callbacks[NOTES]["decisions"] if note["kind"] == "done")
    assert note["step"] == best + 6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    trainer.train()
    assert trainer.state.global_step >= 6


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({**EVALUATES, "save_strategy": "steps", "save_steps": 3}, "save_steps a multiple of eval_steps=2"),
        ({**EVALUATES}, "save_strategy=steps with save_steps a multiple of eval_steps=2 (given: save_strategy=no)"),
        ({"eval_strategy": "epoch"}, "save_strategy=epoch (given: save_strategy=no)"),
    ],
)
def test_where_the_strategies_do_not_keep_the_best_one_sentence_says_what_would(
    changes: dict[str, Any], wanted: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, "stop", False, law="hears", max_steps=3, **changes)
    assert [wanted in line for line in said(caplog) if "the best is kept with" in line] == [True]
    assert not trainer.args.load_best_model_at_end


@pytest.mark.parametrize("action", ["log", "stop"])
def test_nothing_is_changed_where_evaluations_end_nothing(
    action: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    law = "v3.1" if action == "stop" else "hears"
    trainer = run(tmp_path, action, False, law=law, **EVALUATES, max_steps=4, save_strategy="steps", save_steps=2)
    assert not trainer.args.load_best_model_at_end
    assert not any("best" in line for line in said(caplog))


def test_a_law_that_does_not_decide_is_never_said_to_have_decided() -> None:
    law = LAWS["v3.1"]()
    for _ in range(200):
        law.feel(1.0)
    assert law.view().should_stop
    assert not law.view().has_decided_to_stop


def test_a_second_training_is_told_of_its_own_decisions_only(tmp_path: Path) -> None:
    trainer = run(tmp_path, "log", False, law="spiky", max_steps=3)
    trainer.train()
    assert [note["step"] for note in trainer.state.stateful_callbacks[NOTES]["decisions"]] == [4, 5, 6]


def test_a_callback_that_is_added_later_obeys_the_options_too(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, optim_args=f"emo_law={DoneAtSeven.name},self_stop=stop", max_steps=10)
    trainer.add_callback(EmoCallback(console="all"))
    trainer.train()
    assert trainer.state.global_step == 7


def test_arguments_of_the_callback_may_be_texts() -> None:
    made = EmoCallback("v3.1", self_stop="stop", self_stop_patience="2", console="all")
    assert made._if_attached == SelfStop(action="stop", patience=2)
    assert EmoCallback("v3.1", self_stop=False)._if_attached.action == "off"  # YAML's `off`
    with pytest.raises(ValueError, match="action='halt' is not acceptable: it takes one of off, log, save, stop"):
        EmoCallback("v3.1", self_stop="halt")
    assert emo_hf.EmoCallback is EmoCallback


@pytest.fixture(autouse=True)
def warnings_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="emo_hf")
