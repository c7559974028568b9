"""What the callback puts into the logs and on the console, what a checkpoint overrides, what the best model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

import emo_hf
from emo_hf import EmoCallback
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.trainer.kit import emo_of, said, trained

METRICS = {
    "emo/effective_lr", "emo/coefficient", "emo/coefficient_mean", "emo/coefficient_min", "emo/coefficient_max",
    "emo/scalar", "emo/loss_short", "emo/loss_long", "emo/quiet", "emo/should_stop", "emo/observations", "emo/skipped",
}  # fmt: skip


class Coefficients(TrainerCallback):
    """Notes the coefficient of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.seen.append(unwrap(optimizer).emotion.coefficient)


class Renamed(Trainer):
    """Gives the training loss another name in its logs, as SetFit's does."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        renamed = {f"embedding_{key}" if key == "loss" else key: value for key, value in logs.items()}
        super().log(renamed, *args, **kwargs)


@pytest.mark.parametrize("kind", [Trainer, Renamed])
def test_every_training_line_and_no_other_carries_every_metric_over_the_steps_since_the_line_before(
    kind: type[Trainer], tmp_path: Path
) -> None:
    watch = Coefficients()
    trainer = trained(
        tmp_path, kind=kind, eval_dataset=tiny.examples(8), eval_strategy="steps", eval_steps=16, learning_rate=1e-2,
        max_steps=32, logging_steps=8, callbacks=[watch],
    )  # fmt: skip
    lines = [line for line in trainer.state.log_history if "loss" in line or "embedding_loss" in line]
    for number, line in enumerate(lines):
        assert line.keys() >= METRICS
        assert all(type(value) in (int, float) for key, value in line.items() if key.startswith("emo/"))
        window = watch.seen[8 * number : 8 * (number + 1)]
        assert line["emo/coefficient"] == window[-1]
        assert line["emo/effective_lr"] == pytest.approx(line["learning_rate"] * window[-1], rel=1e-12)
        assert (line["emo/coefficient_min"], line["emo/coefficient_max"]) == (min(window), max(window))
        assert line["emo/coefficient_mean"] == pytest.approx(sum(window) / len(window))
    assert any(line["emo/coefficient_min"] < line["emo/coefficient_max"] for line in lines)
    others = [line for line in trainer.state.log_history if line not in lines]
    assert (len(lines), len(others)) == (4, 3), "evaluations and the summary"
    assert not any(key.startswith("emo/") for line in others for key in line)


def test_the_callback_does_nothing_to_logs_of_a_trainer_without_an_emotion(tmp_path: Path) -> None:
    history = trained(tmp_path, optim="adamw_torch", max_steps=2).state.log_history
    assert not any(key.startswith("emo/") for line in history for key in line)


# The console

SHORT = {"emo/effective_lr", "emo/coefficient", "emo/scalar"}
ATTACHED = {"optim": "adamw_torch", "callbacks": [EmoCallback("v3.1", console="all")]}


@pytest.mark.parametrize(
    ("printer", "changes", "shown"),
    [
        (PrinterCallback, {}, SHORT),
        (PrinterCallback, {"optim_args": "emo_law=settle"}, SHORT - {"emo/scalar"}),
        (PrinterCallback, ATTACHED, METRICS),
        (ProgressCallback, {}, SHORT),
        (ProgressCallback, {"optim_args": "console=all"}, METRICS),
    ],
)
def test_the_console_shows_the_most_telling_values_and_what_has_been_left_out_or_all(
    printer: type[TrainerCallback], changes: dict[str, Any], shown: set[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        step = trainer.state.global_step
        return torch.nn.functional.cross_entropy(outputs.logits, labels) * (float("nan") if step == 2 else 1.0)

    own = {"disable_tqdm": printer is PrinterCallback, "compute_loss_func": loss}
    trainer = tiny.trainer(tmp_path, max_steps=4, **own, **changes)
    if printer is PrinterCallback:  # which tests of others do without
        trainer.add_callback(printer)
    trainer.train()
    output = capsys.readouterr()
    printed = [line for line in (output.out + output.err).splitlines() if "'learning_rate'" in line]
    keys = [{key for key in line.split("'") if key.startswith("emo/")} for line in printed]
    if shown == METRICS:
        assert all(found >= METRICS for found in keys)
    else:
        assert [found - {"emo/skipped", "emo/nonfinite_gradients"} for found in keys] == [shown] * 4
        assert ["emo/skipped" in found for found in keys] == [False, False, True, True]
    assert tiny.train_lines(trainer)[-1].keys() >= METRICS - {"emo/scalar", "emo/quiet"}


# Which callback it is, and what a checkpoint overrides


@pytest.mark.parametrize("afterwards", [False, True])
def test_a_callback_that_is_given_takes_the_place_of_the_registered_one_without_a_warning(
    afterwards: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emo_hf.register(emotion="v3.0")
    own = EmoCallback("v3.6")
    trainer = tiny.trainer(tmp_path, optim="adamw_torch", max_steps=1, callbacks=[] if afterwards else [own])
    if afterwards:
        trainer.add_callback(own)
    trainer.train()
    assert [c for c in trainer.callback_handler.callbacks if isinstance(c, EmoCallback)] == [own]
    assert emo_of(trainer).emotion.law == "v3.6"
    assert not any("there is already one" in line for line in caplog.messages)


def test_options_that_a_checkpoint_overrides_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trained(tmp_path, **saving)
    again = {**saving, "resume": tmp_path / "checkpoint-2"}
    trained(tmp_path, **again)
    assert not [line for line in caplog.messages if "checkpoint" in line]
    trainer = trained(tmp_path, **again, learning_rate=3e-3, weight_decay=0.1, optim_args="use_shadow=true")
    (line,) = (line for line in caplog.messages if "options of its checkpoint" in line)
    for option in ("learning_rate 0.001 (given: 0.003)", "use_shadow False (given: True)", "weight_decay 0.0 (given"):
        assert option in line
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 1e-3


# The best model


@pytest.mark.parametrize(("name", "optim"), [("emo/loss_long", "emonavi"), ("eval_emo/loss_long", "adamw_torch")])
def test_the_best_checkpoint_may_be_told_by_a_metric_of_the_emotion_that_there_is(
    name: str, optim: str, tmp_path: Path
) -> None:
    settings = {
        "eval_dataset": tiny.examples(8, seed=1), "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
        "save_steps": 2, "max_steps": 6, "learning_rate": 3e-3, "load_best_model_at_end": True, "optim": optim,
        "greater_is_better": False, "callbacks": [EmoCallback("v3.1")] if optim == "adamw_torch" else [],
    }  # fmt: skip
    trainer = trained(tmp_path, **settings, metric_for_best_model=name)
    at_saves = {line["step"]: line["emo/loss_long"] for line in tiny.train_lines(trainer) if line["step"] % 2 == 0}
    best = min(at_saves, key=at_saves.__getitem__)
    assert trainer.state.best_metric == at_saves[best]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    with pytest.raises(KeyError, match=r"no metric 'emo/loss'; it has: .*emo/loss_long, emo/loss_short"):
        trained(tmp_path, **settings, metric_for_best_model="emo/loss")


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"metric_for_best_model": "emo/loss_long"}, True),
        ({"metric_for_best_model": "emo/loss_long", "greater_is_better": False}, False),
        ({"metric_for_best_model": "emo/coefficient"}, False),
    ],
)
def test_the_direction_that_the_trainer_would_take_for_a_loss_is_warned_of(
    changes: dict[str, Any], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.trainer(tmp_path, **changes)
    largest = "keeps the checkpoint of the largest loss: give greater_is_better=False"
    assert [largest in line for line in said(caplog)] == [True] * warned
