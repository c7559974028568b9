"""What the callbacks put into the logs and on the console, and what they make of the self-stop signal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

import emo_hf
from emo_hf import EmoCallback
from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer.self_stop import SelfStop
from tests import tiny

METRICS = {
    "effective_lr", "coefficient", "coefficient_mean", "coefficient_min", "coefficient_max", "scalar", "loss_short",
    "loss_long", "quiet", "should_stop", "observations", "skipped",
}  # fmt: skip


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


def test_the_rate_is_that_of_the_step_and_a_line_covers_all_steps_since_the_one_before(tmp_path: Path) -> None:
    watch = Coefficients()
    trainer = tiny.trainer(tmp_path, learning_rate=3e-3, num_train_epochs=8, logging_steps=16, callbacks=[watch])
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert len(lines) == 5
    for number, line in enumerate(lines):
        window = watch.seen[16 * number : 16 * (number + 1)]
        assert line["emo/coefficient"] == window[-1]
        assert line["emo/effective_lr"] == pytest.approx(line["learning_rate"] * window[-1], rel=1e-12)
        assert line["emo/coefficient_min"] == min(window)
        assert line["emo/coefficient_max"] == max(window)
        assert line["emo/coefficient_mean"] == pytest.approx(sum(window) / len(window))
    assert any(line["emo/coefficient_min"] < line["emo/coefficient_max"] for line in lines)


@pytest.mark.parametrize("given", [False, True], ids=["registered", "given to the Trainer"])
def test_the_metrics_reach_tensorboard(given: bool, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if given:
        emo_hf.unregister()
    more = {"optim": "adamw_torch", "callbacks": [EmoCallback("v3.1")]} if given else {}
    trainer = tiny.trainer(tmp_path, report_to="tensorboard", **more)
    trainer.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    assert {f"train/emo/{name}" for name in METRICS} <= set(read.Tags()["scalars"])
    written = [(event.step, event.value) for event in read.Scalars("train/emo/effective_lr")]
    logged = [(line["step"], line["emo/effective_lr"]) for line in tiny.train_lines(trainer)]
    assert written == [(step, pytest.approx(value)) for step, value in logged]


class Renamed(Trainer):
    """Gives the training loss another name in its logs, as SetFit's does."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(
            {f"embedding_{key}" if key == "loss" else key: value for key, value in logs.items()}, *args, **kwargs
        )


def test_a_training_line_is_known_by_its_learning_rate_too(tmp_path: Path) -> None:
    trainer = Renamed(tiny.classifier(), tiny.arguments(tmp_path, max_steps=3), train_dataset=tiny.examples())
    trainer.train()
    lines = [line for line in trainer.state.log_history if "embedding_loss" in line]
    assert [line["emo/observations"] for line in lines] == [1, 2, 3]
    assert "emo/observations" not in trainer.state.log_history[-1]


# The console

SHORT = {"emo/effective_lr", "emo/coefficient", "emo/scalar"}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, SHORT),
        ({"optim_args": "emo_law=settle"}, SHORT - {"emo/scalar"}),
        ({"optim_args": "console=all"}, {f"emo/{name}" for name in METRICS}),
        ({"optim": "adamw_torch", "callbacks": [EmoCallback("v3.1", console="all")]}, {f"emo/{n}" for n in METRICS}),
    ],
    ids=["short", "a law without a scalar", "all", "all, attached"],
)
@pytest.mark.parametrize("printer", [PrinterCallback, ProgressCallback])
def test_the_console_shows_the_most_telling_values_or_all(
    printer: type[TrainerCallback], changes: dict[str, Any], shown: set[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trainer = tiny.trainer(tmp_path, max_steps=3, disable_tqdm=printer is PrinterCallback, **changes)
    if printer is PrinterCallback:  # which tests of others do without
        trainer.add_callback(printer)
    trainer.train()
    said = capsys.readouterr()
    printed = [line for line in (said.out + said.err).splitlines() if "'learning_rate'" in line]
    assert len(printed) == 3
    keys = {key for line in printed for key in line.split("'") if key.startswith("emo/")}
    assert keys >= shown if "emo/loss_long" in shown else keys == shown
    assert {key.removeprefix("emo/") for key in tiny.train_lines(trainer)[-1]} >= METRICS - {"scalar", "quiet"}


def test_the_console_shows_what_has_been_left_out_once_there_is_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        step = trainer.state.global_step
        return torch.nn.functional.cross_entropy(outputs.logits, labels) * (float("nan") if step == 2 else 1.0)

    trainer = tiny.trainer(tmp_path, max_steps=4, compute_loss_func=loss)
    trainer.add_callback(PrinterCallback())
    trainer.train()
    printed = [line for line in capsys.readouterr().out.splitlines() if "'learning_rate'" in line]
    assert ["'emo/skipped': 1" in line for line in printed] == [False, False, True, True]


# Which callback it is, and what a checkpoint overrides


@pytest.mark.parametrize("when", ["with the Trainer", "afterwards"])
def test_a_callback_that_is_given_takes_the_place_of_the_registered_one_without_a_warning(
    when: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emo_hf.register(emotion="v3.0")
    own = EmoCallback("v3.6")
    trainer = tiny.trainer(tmp_path, optim="adamw_torch", max_steps=3, callbacks=[own] if when != "afterwards" else [])
    if when == "afterwards":
        trainer.add_callback(own)
    trainer.train()
    assert [c for c in trainer.callback_handler.callbacks if isinstance(c, EmoCallback)] == [own]
    assert unwrap(trainer.optimizer).emotion.law == "v3.6"
    assert not [record for record in caplog.records if "there is already one" in record.getMessage()]


@pytest.mark.parametrize("optim", ["emonavi", "adamw_torch"])
def test_options_that_a_checkpoint_overrides_are_named_once(
    optim: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(resume: str | None = None, **changes: Any) -> Trainer:
        own = [EmoCallback("v3.1")] if optim == "adamw_torch" else []
        trainer = tiny.trainer(
            tmp_path, optim=optim, max_steps=4, save_strategy="steps", save_steps=2, callbacks=own, **changes
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run()
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        run(str(tmp_path / "checkpoint-2"))
        assert not [line for line in caplog.messages if "checkpoint" in line]
        more = {"optim_args": "use_shadow=true"} if optim == "emonavi" else {}
        trainer = run(str(tmp_path / "checkpoint-2"), learning_rate=3e-3, weight_decay=0.1, **more)
    (said,) = (line for line in caplog.messages if "options of its checkpoint" in line)
    assert "learning_rate 0.001 (given: 0.003)" in said
    assert "weight_decay 0.0 (given: 0.1)" in said
    assert ("use_shadow False (given: True)" in said) == (optim == "emonavi")
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 1e-3


# Self-stop


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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"action": "halt"}, "action='halt' is not acceptable: it takes one of off, log, save, stop"),
        ({"patience": 0}, "patience=0 is not acceptable: it takes a whole number of at least 1"),
        ({"min_steps": -1}, "min_steps=-1 is not acceptable: it takes a whole number of at least 0"),
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


def test_the_callback_does_nothing_to_logs_of_a_trainer_without_an_optimizer() -> None:
    logs = {"loss": 1.0}
    emo_hf.EmoCallback().on_log(None, TrainerState(), TrainerControl(), logs=logs, optimizer=None)
    assert logs == {"loss": 1.0}
    assert unwrap(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])) is None
