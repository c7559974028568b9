"""The table at the end of a run: what was decided, what is saved, what to do next."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from transformers import TrainerState

from emo_hf.laws.decision import Note
from emo_hf.plot.run import Run
from emo_hf.train.measures import ACCURACY, PERPLEXITY
from emo_hf.train.progress import log_line
from emo_hf.train.summary import rows_of, table

FACTS: dict[str, Any] = {
    "task": "t", "model": "m", "optimizer": "adamw_torch", "law": "settle", "trainable_parameters": 5,
    "parameters": 200, "train_examples": 3, "validation_examples": 2, "steps": 40, "planned_steps": 1060,
    "stopped_by_self_stop": True,
    "should_stop_step": None, "decisions": [], "train_loss": 0.5, "eval_loss": 1.0, "evaluations": 4,
    "best_eval_loss": 1.0, "best_step": 30, "saved_step": 30, "saved_average": True, "majority_baseline": 0.25,
    "resumed_from": None, "interrupted": False, "seconds": 61.0, "accuracy": 0.5, "perplexity": 2.7,
    "first_perplexity": 30.0,
}  # fmt: skip


def said(name: str, beside: tuple[Run, ...] = (), **changes: Any) -> list[str]:
    rows = rows_of(FACTS | changes, [ACCURACY, PERPLEXITY], beside, {"adapter": "out"})
    return [value for key, value in rows if key == name]


def test_it_says_what_is_saved_and_how_good_that_is() -> None:
    assert said("what is saved") == ["the average of the weights of the best evaluation, step 30"]
    assert said("what is saved", saved_average=False, saved_step=40) == ["the weights of the last step, step 40"]
    assert said("eval loss") == ["1.0000"]
    assert said("eval loss", eval_loss=None) == []
    assert said("accuracy") == ["50.0% (always the most frequent label: 25.0%)"]
    assert said("perplexity") == ["2.7 (at first 30.0)"]
    assert said("accuracy", accuracy=None) == ["not measured"]
    assert said("trainable parameters") == ["5 of 200 (2.50 %)"]
    assert said("wall time") == ["1 min 01 s"]


def test_it_says_how_the_run_ended() -> None:
    assert said("self-stop") == ["stopped by itself at step 40 of at most 1,060"]
    went_on = {"stopped_by_self_stop": False, "planned_steps": 40}
    assert said("self-stop", **went_on) == ["the signal never fired"]
    assert said("self-stop", **went_on, should_stop_step=7) == ["the signal first fired at step 7; it went on"]
    assert said("self-stop", law=None) == []
    assert said("steps", resumed_from="c", interrupted=True) == ["40 of 1,060, resumed from c, interrupted"]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({}, []),
        ({"interrupted": True}, ["go on with --resume_from_checkpoint true"]),
        ({"best_eval_loss": None}, ["to see how good it is, give validation data and --eval_strategy epoch"]),
        ({"saved_step": 40, "eval_loss": 1.2},
         ["step 30 was better (eval loss 1.0000): with equal eval_strategy and save_strategy it is kept"]),
        ({"saved_step": 40, "best_step": 40, "stopped_by_self_stop": False},
         ["the eval loss fell to the end: train longer (--num_train_epochs, --max_steps)"]),
        ({"saved_step": 40, "best_step": 40, "stopped_by_self_stop": False, "evaluations": 1}, []),
    ],
)  # fmt: skip
def test_it_says_what_to_do_next(changes: dict[str, Any], hint: list[str]) -> None:
    assert said("next", **changes) == hint


def test_decisions_are_told_in_words_and_steps_left_out_are_counted() -> None:
    skipped = [Note(step, "skipped", 1.0, "a loss of 9") for step in (3, 5)]
    lowered = [Note(10 * i, "lowered", 1 / 3**i, "the loss is at 7") for i in range(1, 9)]
    (first, *_, last) = words = said("decided", decisions=[asdict(note) for note in skipped + lowered[:2]])
    assert first == "step 10: rate lowered to 0.3333 of the learning rate: the loss is at 7"
    assert last == "2 steps left out"
    assert len(words) == 3
    many = said("decided", decisions=[asdict(note) for note in lowered])
    assert many[3] == "… 2 more, all in trainer_state.json"
    assert [line.split(":")[0] for line in many if "…" not in line] == [f"step {i}" for i in (10, 20, 30, 60, 70, 80)]


def test_other_runs_are_named_with_their_best() -> None:
    history = [{"step": 1, "eval_loss": 3.0}, {"step": 2, "eval_loss": 2.0}, {"step": 3, "eval_loss": 2.5}]
    beside = (Run(name="usual", history=history), Run(name="silent", history=[{"step": 1, "loss": 1.0}]))
    assert said("beside", beside) == ["usual: best eval loss 2.0000, at step 2", "silent: was not evaluated"]


def test_a_name_that_repeats_is_written_once() -> None:
    assert table([("a", "1"), ("bb", "2"), ("bb", "3")]) == "a   1\nbb  2\n    3"


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"loss": 1.5, "learning_rate": 1e-3}, "step     7 of 40  loss 1.5000  lr 1.00e-03"),
        ({"loss": 1.5, "learning_rate": 1e-3, "emo/coefficient": 0.5, "emo/effective_lr": 5e-4, "emo/scalar": 0.1},
         "step     7 of 40  loss 1.5000  lr 1.00e-03 × 0.500 → 5.00e-04  σ +0.100"),
        ({"eval_loss": 1.5, "eval_accuracy": 0.5},
         "step     7 of 40  eval loss 1.5000  accuracy 0.5000  perplexity 4.4817"),
        ({"eval_weights_loss": 1.5}, None),
        ({"train_runtime": 3.0, "train_loss": 1.0}, None),
    ],
)  # fmt: skip
def test_a_log_entry_is_a_short_line(logs: dict[str, float], line: str | None) -> None:
    assert log_line(logs, TrainerState(global_step=7, max_steps=40), [ACCURACY, PERPLEXITY]) == line
