"""metric_for_best_model may be one of the emotion's metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import emo_hf
from tests import tiny


def train(folder: Path, **changes: Any) -> Any:
    trainer = tiny.trainer(
        folder, eval_dataset=tiny.examples(8, seed=1), eval_strategy="steps", eval_steps=3, save_strategy="steps",
        save_steps=3, max_steps=9, learning_rate=3e-3, load_best_model_at_end=True,
        **{"metric_for_best_model": "emo/loss_long", "greater_is_better": False, **changes},
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["emo/loss_long", "eval_emo/loss_long"])
@pytest.mark.parametrize("optim", ["emonavi", "adamw_torch"])
def test_the_best_checkpoint_may_be_told_by_the_slow_average_of_the_loss(
    name: str, optim: str, tmp_path: Path
) -> None:
    callbacks = [emo_hf.EmoCallback(emotion="v3.1")] if optim == "adamw_torch" else []
    trainer = train(tmp_path, metric_for_best_model=name, optim=optim, callbacks=callbacks)
    averages = {line["step"]: line["emo/loss_long"] for line in tiny.train_lines(trainer)}
    at_saves = {step: averages[step] for step in (3, 6, 9)}
    best = min(at_saves, key=at_saves.__getitem__)
    assert trainer.state.best_metric == at_saves[best]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")


def test_other_metrics_are_left_as_they_are(tmp_path: Path) -> None:
    trainer = train(tmp_path, metric_for_best_model="loss")
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert trainer.state.best_metric == min(line["eval_loss"] for line in evaluations)
    assert not any("emo/" in key for line in evaluations for key in line)


def test_a_metric_that_the_emotion_has_not_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"no metric 'emo/loss'; it has: .*emo/loss_long, emo/loss_short"):
        train(tmp_path, metric_for_best_model="emo/loss")


def test_the_direction_that_the_trainer_would_take_for_a_loss_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        tiny.trainer(tmp_path, metric_for_best_model="emo/loss_long")
        assert "keeps the checkpoint of the largest loss: give greater_is_better=False" in caplog.text
        caplog.clear()
        tiny.trainer(tmp_path, metric_for_best_model="emo/loss_long", greater_is_better=False)
        tiny.trainer(tmp_path, metric_for_best_model="emo/coefficient")
    assert not caplog.records
