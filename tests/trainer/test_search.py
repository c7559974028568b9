"""Hyperparameter search by the Trainer itself: each trial is what a run of its settings alone would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import emo_hf
from tests import tiny
from tests.emo_cases import assert_identical
from tests.trainer.kit import outcome

optuna = pytest.importorskip("optuna")

TRIALS = 2


def test_each_trial_equals_a_run_of_its_settings_alone(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ends: list[dict[str, Any]] = []

    def objective(metrics: dict[str, float]) -> float:
        ends.append(outcome(trainer))
        return metrics["eval_loss"]

    changes: dict[str, Any] = {
        "optim": "emolynx", "optim_args": "use_shadow=true,self_stop=stop", "max_steps": 6, "eval_strategy": "steps",
        "eval_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_dataset": tiny.examples(8, seed=1),
    }  # fmt: skip
    trainer = tiny.trainer(tmp_path / "search", **changes)
    trainer.model_init = lambda: tiny.classifier()
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)},
        compute_objective=objective, n_trials=TRIALS, direction="minimize", backend="optuna",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    rates = [end["lines"][0]["learning_rate"] for end in ends]
    assert len(set(rates)) == TRIALS, "the trials are different ones"
    assert best.hyperparameters["learning_rate"] in rates
    for number, (rate, end) in enumerate(zip(rates, ends, strict=True)):
        alone = tiny.trainer(tmp_path / f"alone-{number}", **changes, learning_rate=rate)
        alone.model_init = trainer.model_init  # the numbers that are drawn for dropout follow those for the model
        alone.train()
        assert_identical(outcome(alone), end)
        assert end["lines"][0]["emo/observations"] == 1, "each begins with an emotion of its own"
    for run in (tmp_path / "search").glob("run-*"):
        assert emo_hf.last_whole_checkpoint(run) == str(run / "checkpoint-6")
    assert len(list((tmp_path / "search").glob("run-*"))) == TRIALS
