"""What the callbacks put into the logs, and what they make of the self-stop signal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer.self_stop import SelfStop
from tests import tiny

METRICS = {
    "effective_lr", "coefficient", "coefficient_mean", "coefficient_min", "coefficient_max", "scalar", "loss_short",
    "loss_long", "quiet", "should_stop", "observations", "skipped",
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


class Coefficients(TrainerCallback):
    """Notes the coefficient of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.seen.append(unwrap(optimizer).emotion.coefficient)


def test_every_training_line_carries_every_metric_as_a_plain_number(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, eval_dataset=tiny.examples(8), eval_strategy="epoch")
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert len(lines) == 10
    for line in lines:
        assert {key.removeprefix("emo/") for key in line if key.startswith("emo/")} >= METRICS
        assert all(type(value) in (int, float) for key, value in line.items() if key.startswith("emo/"))
    others = [line for line in trainer.state.log_history if "loss" not in line]
    assert len(others) == 2, "an evaluation and the summary"
    assert not any(key.startswith("emo/") for line in others for key in line)


def test_the_effective_rate_is_the_logged_rate_times_the_coefficient_of_the_same_step(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, learning_rate=3e-3, num_train_epochs=8)
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert any(line["emo/coefficient"] > 1.1 for line in lines), "the loss improves: the emotion must accelerate"
    for line in lines:
        assert line["emo/effective_lr"] == pytest.approx(line["learning_rate"] * line["emo/coefficient"], rel=1e-12)


def test_what_happened_between_two_log_lines_is_in_the_second(tmp_path: Path) -> None:
    watch = Coefficients()
    trainer = tiny.trainer(tmp_path, learning_rate=3e-3, num_train_epochs=8, logging_steps=16, callbacks=[watch])
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert len(lines) == 5
    for number, line in enumerate(lines):
        window = watch.seen[16 * number : 16 * (number + 1)]
        assert line["emo/coefficient_min"] == min(window)
        assert line["emo/coefficient_max"] == max(window)
        assert line["emo/coefficient_mean"] == pytest.approx(sum(window) / len(window))
    assert any(line["emo/coefficient_min"] < line["emo/coefficient_max"] for line in lines)


def test_the_metrics_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # optim_args cannot fail to be seen: the run writes to the folder that transformers names by itself.
    trainer = tiny.trainer(tmp_path, report_to="tensorboard")
    trainer.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    assert {f"train/emo/{name}" for name in METRICS} <= set(read.Tags()["scalars"])
    written = [(event.step, event.value) for event in read.Scalars("train/emo/effective_lr")]
    logged = [(line["step"], line["emo/effective_lr"]) for line in tiny.train_lines(trainer)]
    assert written == [(step, pytest.approx(value)) for step, value in logged]


def test_adding_the_callback_by_hand_as_well_does_not_empty_the_window(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, learning_rate=3e-3, num_train_epochs=4, logging_steps=8)
    trainer.callback_handler.callbacks.append(emo_hf.EmoCallback())
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert any(line["emo/coefficient_min"] < line["emo/coefficient_max"] for line in lines)


class FlatLoss(TrainerCallback):
    """Makes a run go flat for good: from a step on, the weights no longer move."""

    def __init__(self, from_step: int) -> None:
        self.from_step = from_step

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        if state.global_step >= self.from_step:
            for group in optimizer.param_groups:
                group["lr"] = 0.0


SAME_BATCH = tiny.examples(4) * 100  # 100 equal steps an epoch


EAGER = ",self_stop_patience=2,self_stop_min_steps=50"


def flat_run(folder: Path, epochs: int = 2, flat_from: int = 0, **changes: Any):
    """A run of 200 steps whose loss stays where it is, from the start or from a step on."""
    settings = {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "logging_steps": 10}
    callbacks = [FlatLoss(flat_from), *changes.pop("callbacks", [])]
    model = tiny.classifier(dropout=0.0)
    return tiny.trainer(
        folder, model=model, data=SAME_BATCH, num_train_epochs=epochs, callbacks=callbacks, **(settings | changes)
    )


def test_a_run_that_has_gone_flat_is_stopped_saved_logged_and_evaluated(tmp_path: Path) -> None:
    trainer = flat_run(
        tmp_path, epochs=5, flat_from=3, optim_args="self_stop=stop", save_strategy="epoch", eval_strategy="epoch",
        eval_dataset=tiny.examples(4),
    )  # fmt: skip
    trainer.train()
    stopped = trainer.state.global_step
    assert SelfStop.min_steps + 32 * SelfStop.patience <= stopped < 500
    assert (tmp_path / f"checkpoint-{stopped}" / "optimizer.pt").is_file()
    history = trainer.state.log_history
    assert any("loss" in line and line["step"] == stopped for line in history)
    assert any("eval_loss" in line and line["step"] == stopped for line in history)


def test_the_raw_signal_is_logged_long_before_it_is_believed(tmp_path: Path) -> None:
    trainer = flat_run(tmp_path, optim_args="self_stop=stop" + EAGER)
    trainer.train()
    raw = next(line["step"] for line in tiny.train_lines(trainer) if line["emo/should_stop"])
    assert raw < trainer.state.global_step - 50


@pytest.mark.parametrize("action", ["off", "log", "save"])
def test_only_stop_stops(action: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soon = ",self_stop_patience=1,self_stop_min_steps=20"
    trainer = flat_run(tmp_path, epochs=1, optim_args=f"self_stop={action}" + soon)
    trainer.train()
    assert trainer.state.global_step == 100
    assert len(list(tmp_path.glob("checkpoint-*"))) == (1 if action == "save" else 0)
    said = [record for record in caplog.records if "Training has been flat" in record.message]
    assert len(said) == (0 if action == "off" else 1)


def test_the_callback_does_in_python_what_optim_args_do_on_the_command_line(tmp_path: Path) -> None:
    by_text = flat_run(tmp_path / "a", optim_args="self_stop=stop" + EAGER)
    by_text.train()
    callback = emo_hf.EmoEarlyStoppingCallback(patience=2, min_steps=50)
    by_callback = flat_run(tmp_path / "b", callbacks=[callback], optim_args="self_stop=off")
    by_callback.train()
    assert by_callback.state.global_step == by_text.state.global_step < 200


def test_the_count_of_flat_steps_survives_a_resume(tmp_path: Path) -> None:
    changes = {"optim_args": "self_stop=stop" + EAGER, "save_strategy": "steps", "save_steps": 90}
    whole = flat_run(tmp_path, **changes)
    whole.train()
    resumed = flat_run(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-90"))
    assert resumed.state.global_step == whole.state.global_step


def test_a_stopped_run_that_is_resumed_with_the_same_arguments_stops_at_once(tmp_path: Path) -> None:
    changes = {"optim_args": "self_stop=stop" + EAGER, "save_strategy": "steps", "save_steps": 90}
    whole = flat_run(tmp_path, **changes)
    whole.train()
    stopped = whole.state.global_step
    resumed = flat_run(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped}"))
    assert resumed.state.global_step <= stopped + 1


def test_steps_of_warm_up_are_never_counted_as_flat(tmp_path: Path) -> None:
    trainer = flat_run(tmp_path, optim_args="self_stop=stop" + EAGER, warmup_steps=60)
    trainer.train()
    assert 60 + 50 + 2 * 32 <= trainer.state.global_step < 200


def test_early_stopping_without_an_emo_optimizer_says_that_it_has_nothing_to_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny.trainer(tmp_path, optim="adamw_torch", callbacks=[emo_hf.EmoEarlyStoppingCallback()])
    trainer.train()
    assert any("nothing to watch" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"action": "halt"}, "action must be one of off, log, save, stop, got 'halt'"),
        ({"patience": 0}, "patience must be a whole number of windows, at least 1, got 0"),
        ({"min_steps": -1}, "min_steps must be a whole number of steps, at least 0, got -1"),
    ],
)
def test_wrong_arguments_of_the_callback_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        emo_hf.EmoEarlyStoppingCallback(**wrong)


def test_a_checkpoint_from_before_registration_can_be_resumed_and_saved_again(tmp_path: Path) -> None:
    emo_hf.unregister()
    tiny.trainer(tmp_path, optim="adamw_torch", save_strategy="steps", save_steps=4).train()
    emo_hf.register()
    trainer = tiny.trainer(tmp_path, optim="adamw_torch", save_strategy="steps", save_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step == 10


def test_restoring_the_states_of_callbacks_leaves_metrics_and_self_stop_as_they_were(tmp_path: Path) -> None:
    changes = {
        "optim_args": "self_stop=stop" + EAGER, "save_strategy": "steps", "save_steps": 90,
        "restore_callback_states_from_checkpoint": True,
    }  # fmt: skip
    whole = flat_run(tmp_path, **changes)
    whole.train()
    resumed = flat_run(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-90"))
    assert resumed.state.global_step == whole.state.global_step < 200
    assert {key.removeprefix("emo/") for key in tiny.train_lines(resumed)[-1]} >= METRICS


@pytest.mark.parametrize("optim", ["emonavi", "adamw_torch"])
def test_a_checkpoint_that_says_nothing_of_the_callback_can_be_resumed_and_saved_again(
    optim: str, tmp_path: Path
) -> None:
    changes = {"optim": optim, "save_strategy": "steps", "save_steps": 4}
    tiny.trainer(tmp_path, **changes).train()
    file = tmp_path / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["stateful_callbacks"].pop("emo_hf", None)  # as version 0.1.0 wrote it
    file.write_text(json.dumps(state), encoding="utf-8")
    trainer = tiny.trainer(tmp_path, **changes)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step == 10


def test_the_callback_does_nothing_to_logs_of_a_trainer_without_an_optimizer() -> None:
    logs = {"loss": 1.0}
    emo_hf.EmoCallback().on_log(None, TrainerState(), TrainerControl(), logs=logs, optimizer=None)
    assert logs == {"loss": 1.0}
    assert unwrap(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])) is None
