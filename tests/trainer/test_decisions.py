"""What laws decide in a Trainer: said once, kept as data, obeyed; evaluations reach them, each once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import Trainer, TrainerCallback

from emo_hf import EmoCallback, EmoEarlyStoppingCallback
from emo_hf.laws import LAWS
from emo_hf.laws.decision import Decision, Note
from emo_hf.laws.law import Law
from emo_hf.laws.metrics import NOTES
from emo_hf.trainer import notes
from tests import tiny
from tests.trainer.kit import SaveAt, emo_of, said, trained


class Hears(Law):
    """Notes the evaluations that it hears, and decides nothing, though it might."""

    name = "hears"
    decides_to_stop = True
    numbers: ClassVar[dict[str, float]] = {"evaluated": 0.0}
    evaluated: float

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def decide(self, loss: float) -> Decision:
        return Decision()

    def hear_evaluation(self, loss: float) -> None:
        self.evaluated += 1
        self.heard.append(loss)


class DoneAtSeven(Hears):
    """Decides at its 7th loss, or at its second evaluation, that training is over."""

    name = "done-at-seven"

    def signals_stop(self) -> bool:
        return self.observations >= 7 or self.evaluated >= 2

    @property
    def decisions(self) -> list[Note]:
        return [Note(min(self.observations, 7), "done", 1.0, "it is enough")] if self.signals_stop() else []


class Spiky(Hears):
    """Says something of each of its steps, and keeps only the last 4."""

    name = "spiky"

    @property
    def decisions(self) -> list[Note]:
        steps = range(max(1, self.observations - 3), self.observations + 1)
        return [Note(step, "lowered" if step == 2 else "skipped", 0.123456, f"at {step}") for step in steps]


@pytest.fixture(autouse=True)
def laws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for law in (DoneAtSeven, Hears, Spiky):
        monkeypatch.setitem(LAWS, law.name, law)


def run(folder: Path, action: str, attached: bool = False, *, law: str = DoneAtSeven.name, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {"max_steps": 10, "logging_steps": 5, "eval_dataset": tiny.examples(8)}
    if attached:
        own = [EmoCallback(emotion=law, self_stop=action)]
        settings |= {"optim": "adamw_torch", "callbacks": [*own, *changes.pop("callbacks", [])]}
    else:
        settings |= {"optim_args": f"emo_law={law},self_stop={action}"}
    return trained(folder, **(settings | changes))


def heard(trainer: Trainer) -> list[float]:
    return emo_of(trainer)._engine.law.heard


def evaluated(trainer: Trainer, key: str = "eval_loss") -> dict[int, float]:
    return {line["step"]: line[key] for line in trainer.state.log_history if key in line}


def decisions(trainer: Trainer) -> list[dict[str, Any]]:
    return trainer.state.stateful_callbacks[NOTES]["decisions"]


DONE = {"step": 7, "kind": "done", "factor": 1.0, "reason": "it is enough"}
TOLD = "Step 7: training may end: it is enough"
either = pytest.mark.parametrize("attached", [False, True])
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}


def saves(steps: int) -> dict[str, Any]:
    return {"save_strategy": "steps", "save_steps": steps}


@either
def test_stop_ends_the_run_in_the_step_of_the_decision_and_says_so_once(
    attached: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, "stop", attached, save_strategy="epoch", eval_strategy="epoch", warmup_steps=9)
    assert trainer.state.global_step == 7
    assert said(caplog)[-2:] == [TOLD, "The law has decided to stop (step 7, epoch 0.70): stopping."]
    assert sum("it is enough" in line for line in said(caplog)) == 1
    saved = json.loads((tmp_path / "checkpoint-7" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"][NOTES]["decisions"] == [DONE]
    at_the_end = [line for line in trainer.state.log_history if line["step"] == 7]
    assert [key for line in at_the_end for key in ("loss", "eval_loss") if key in line] == ["loss", "eval_loss"]
    assert next(line for line in at_the_end if "loss" in line)["emo/should_stop"] == 1


@pytest.mark.parametrize(("attached", "action", "saved"), [(False, "off", 0), (True, "log", 0), (True, "save", 1)])
def test_the_other_actions_are_taken_once_and_the_run_goes_on(
    attached: bool, action: str, saved: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, action, attached)
    assert trainer.state.global_step == 10
    assert [line for line in said(caplog) if "Step 7" in line] == [TOLD]
    assert not any("may be done" in line for line in said(caplog))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-7"] * saved


def test_a_decision_that_an_evaluation_brings_is_obeyed_before_the_next_step_and_evaluated_once(
    tmp_path: Path,
) -> None:
    trainer = run(tmp_path, "stop", **EVALUATES, **saves(4))
    assert (trainer.state.global_step, list(evaluated(trainer))) == (4, [2, 4])
    assert decisions(trainer) == [{**DONE, "step": 4}]
    assert (tmp_path / "checkpoint-4").is_dir()


def test_early_stopping_and_a_callback_that_is_added_later_obey_and_do_not_say_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tmp_path, "log", callbacks=[EmoEarlyStoppingCallback()])
    assert trainer.state.global_step == 7
    assert sum("it is enough" in line or "stopping" in line for line in said(caplog)) == 2
    assert not any("may be done" in line for line in said(caplog))
    assert run(tmp_path, "log", callbacks=[EmoEarlyStoppingCallback()], **EVALUATES).state.global_step == 4
    trainer = tiny.trainer(tmp_path, optim_args=f"emo_law={DoneAtSeven.name},self_stop=stop", max_steps=10)
    trainer.add_callback(EmoCallback(console="all"))
    trainer.train()
    assert trainer.state.global_step == 7


@pytest.mark.parametrize(
    ("attached", "action", "step", "again"), [(False, "stop", 5, 1), (True, "save", 7, 0), (False, "save", 5, 1)]
)
def test_a_resumed_run_does_what_the_whole_one_did(
    attached: bool, action: str, step: int, again: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path, action, attached, **saves(step))
    checkpoints = {path.name for path in tmp_path.glob("checkpoint-*")}
    caplog.clear()
    resumed = run(tmp_path, action, attached, resume=tmp_path / f"checkpoint-{step}", **saves(step))
    assert resumed.state.global_step == whole.state.global_step
    assert sum("it is enough" in line for line in said(caplog)) == again
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == checkpoints
    assert decisions(resumed) == [DONE]


def test_the_notes_keep_what_the_law_forgets_and_of_too_much_leave_out_the_oldest_spikes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notes, "MOST_NOTES", 8)
    trainer = run(tmp_path, "stop", law="spiky", max_steps=12)
    assert [note["step"] for note in decisions(trainer)] == [2, 6, 7, 8, 9, 10, 11, 12]
    assert decisions(trainer)[0] == {"step": 2, "kind": "lowered", "factor": 0.123456, "reason": "at 2"}
    lines = [line for line in said(caplog) if line.startswith("Step ")]
    assert len(lines) == 2, "of steps that are left out the first is said, and the logs have the count"
    assert lines[1] == "Step 2: rate lowered to 0.1235 of the learning rate: at 2 (lower=false leaves the rate alone)"
    trainer.args.max_steps = 3
    trainer.train()
    assert [note["step"] for note in decisions(trainer)] == [13, 14, 15], "a second training has its own only"


# Evaluations


@either
def test_each_evaluation_in_training_is_heard_once_also_in_a_resumed_run_and_none_after_it(
    attached: bool, tmp_path: Path
) -> None:
    changes = {**EVALUATES, "law": "hears", "eval_on_start": True}
    trainer = run(tmp_path, "stop", attached, **changes, callbacks=[SaveAt(4)], max_steps=5)
    losses = evaluated(trainer)
    assert list(losses) == [0, 2, 4, 5]
    trainer.evaluate()
    assert heard(trainer) == list(losses.values())
    resumed = run(tmp_path, "stop", attached, **changes, resume=tmp_path / "checkpoint-4", max_steps=6)
    assert heard(resumed) == [evaluated(resumed)[6]]


SETS = {"one": tiny.examples(8, seed=1), "other": tiny.examples(8, seed=2)}


def test_of_several_sets_the_mean_is_heard_and_the_best_may_be_told_by_it(tmp_path: Path) -> None:
    trainer = run(tmp_path, "stop", law="hears", eval_dataset=SETS, **EVALUATES, **saves(2), max_steps=6)
    one, other = (evaluated(trainer, f"eval_{name}_loss").values() for name in SETS)
    assert heard(trainer) == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])
    assert trainer.state.best_metric == pytest.approx(min(heard(trainer)))


@pytest.mark.parametrize(("metric", "sign"), [("eval_other_loss", 1), ("other_odd", -1)])
def test_the_metric_for_the_best_model_is_heard_where_there_is_one(metric: str, sign: int, tmp_path: Path) -> None:
    best = {"eval_dataset": SETS, "metric_for_best_model": metric}
    trainer = tiny.trainer(tmp_path, optim_args="emo_law=hears", max_steps=4, **best, **EVALUATES)
    trainer.compute_metrics = lambda predicted: {"odd": float(predicted.predictions.sum())}
    trainer.train()
    told = evaluated(trainer, "eval_" + metric.removeprefix("eval_"))
    assert list(told) == [2, 4]
    assert heard(trainer) == [sign * value for value in told.values()]


class Worsens(TrainerCallback):
    """Has evaluations get better until step 4, and worse after it, since the weights grow."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step > 4:
            with torch.no_grad():
                for param in model.parameters():
                    param.mul_(3.0)


WORSENS = {**EVALUATES, **saves(2), "learning_rate": 3e-3}


@either
def test_settle_ends_a_run_at_the_best_model_and_a_second_training_is_not_over_at_once(
    attached: bool, tmp_path: Path
) -> None:
    trainer = run(tmp_path, "stop", attached, law="settle", max_steps=30, **WORSENS, callbacks=[Worsens()])
    best = trainer.state.best_global_step
    assert trainer.state.global_step == best + 6, "after three evaluations that are no better"
    (note,) = (note for note in decisions(trainer) if note["kind"] == "done")
    assert note["step"] == best + 6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    trainer.train()
    assert trainer.state.global_step >= 6


BETTER = "the best is kept with save_strategy="


@pytest.mark.parametrize(
    ("action", "law", "changes", "wanted"),
    [
        ("stop", "hears", {**EVALUATES, **saves(4)}, "load_best_model_at_end is on"),
        ("early", "hears", {**EVALUATES, **saves(2)}, "load_best_model_at_end is on"),
        ("stop", "hears", {**EVALUATES, **saves(3)}, "steps with save_steps a multiple of eval_steps=2 (given: "),
        ("stop", "hears", {**EVALUATES}, "steps with save_steps a multiple of eval_steps=2 (given: save_strategy=no)"),
        ("stop", "hears", {"eval_strategy": "epoch"}, BETTER + "epoch (given: save_strategy=no)"),
        ("log", "hears", {**EVALUATES, **saves(2)}, None),
        ("stop", "v3.1", {**EVALUATES, **saves(2)}, None),
    ],
)
def test_a_run_that_evaluations_may_end_gives_the_best_model_or_says_what_is_in_the_way(
    action: str, law: str, changes: Any, wanted: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    early = [EmoEarlyStoppingCallback()] if action == "early" else []
    changes = {**changes, "learning_rate": 3e-3, "callbacks": [Worsens(), *early], "max_steps": 6}
    trainer = run(tmp_path, action.replace("early", "log"), law=law, **changes)
    assert [wanted in line for line in said(caplog) if "best" in line] == ([True] if wanted else [])
    is_on = wanted == "load_best_model_at_end is on"
    assert trainer.args.load_best_model_at_end is is_on
    if is_on:
        assert trainer.state.best_global_step == 4
        assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated(trainer)[4], rel=1e-6)
