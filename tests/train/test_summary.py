"""The table at the end of a run: what was decided, what is saved, what to do next; and the line of a log entry."""

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
    "stopped_by_self_stop": True, "should_stop_step": None, "decisions": [], "train_loss": 0.5, "eval_loss": 1.0,
    "evaluations": 4, "best_eval_loss": 1.0, "best_step": 30, "saved_step": 30, "saved_average": True,
    "majority_baseline": 0.25, "resumed_from": None, "interrupted": False, "seconds": 61.0, "accuracy": 0.5,
    "perplexity": 2.7, "first_perplexity": 30.0, "first_step": 10,
}  # fmt: skip

WENT_ON = {"stopped_by_self_stop": False, "planned_steps": 40}
LAST = {"saved_step": 40, "best_step": 40, "stopped_by_self_stop": False}
USE = "PeftModel.from_pretrained(model, 'out'), or save it merged (--merge_on_save)"
SKIPPED = [Note(step, "skipped", 1.0, "a loss of 9") for step in (3, 5)]
LOWERED = [Note(10 * i, "lowered", 1 / 3**i, "the loss is at 7") for i in range(1, 9)]
FIRST = "step 10: rate lowered to 0.3333 of the learning rate: the loss is at 7"


@pytest.mark.parametrize(
    ("row", "changes", "said"),
    [
        ("what is saved", {}, "the average of the weights of the best evaluation, step 30"),
        ("what is saved", {"saved_average": False, "saved_step": 40}, "the weights of the last step, step 40"),
        ("eval loss", {}, "1.0000"),
        ("eval loss", {"eval_loss": None}, None),
        ("accuracy", {}, "50.0% (25.0% by always saying the most frequent label)"),
        ("accuracy", {"accuracy": None}, "not measured"),
        ("perplexity", {}, "2.7 (30.0 at step 10)"),
        ("trainable parameters", {}, "5 of 200 (2.50 %)"),
        ("wall time", {}, "1 min 01 s"),
        ("self-stop", {}, "stopped by itself at step 40 of at most 1,060"),
        ("self-stop", WENT_ON, "it never said that training may end"),
        ("self-stop", {**WENT_ON, "should_stop_step": 7}, "it first said so at step 7; it went on"),
        ("self-stop", {"law": None}, None),
        ("steps", {"resumed_from": "c", "interrupted": True}, "40 of 1,060, resumed from c, interrupted"),
        ("use it", {}, USE),
        ("next", {}, None),
        ("next", {"interrupted": True}, "go on with --resume_from_checkpoint true"),
        ("next", {"best_eval_loss": None}, "to see how good it is, give validation data and --eval_strategy epoch"),
        ("next", {"saved_step": 40, "eval_loss": 1.2},
         "step 30 was better (eval loss 1.0000): with equal eval_strategy and save_strategy it is kept"),
        ("next", LAST, "the eval loss fell to the end: train longer (--num_train_epochs, --max_steps)"),
        ("next", {**LAST, "evaluations": 1}, None),
        ("decided", {"decisions": [asdict(note) for note in [*SKIPPED, LOWERED[0]]]}, f"{FIRST}|2 steps left out"),
    ],
)  # fmt: skip
def test_a_row_says_what_the_facts_are(row: str, changes: dict[str, Any], said: str | None) -> None:
    rows = rows_of(FACTS | changes, [ACCURACY, PERPLEXITY], (), {"adapter": "out"})
    assert "|".join(value for key, value in rows if key == row) == (said or "")


def test_of_many_decisions_the_first_and_the_last_are_told_and_other_runs_with_their_best() -> None:
    history = [{"step": 1, "eval_loss": 3.0}, {"step": 2, "eval_loss": 2.0}, {"step": 3, "eval_loss": 2.5}]
    beside = (Run(name="usual", history=history), Run(name="silent", history=[{"step": 1, "loss": 1.0}]))
    facts = FACTS | {"decisions": [asdict(note) for note in LOWERED]}
    rows = rows_of(facts, [ACCURACY, PERPLEXITY], beside, {"adapter": "out"})
    decided = [value.split(":")[0] for key, value in rows if key == "decided"]
    assert decided == [*(f"step {i}" for i in (10, 20, 30)), "… 2 more, all in trainer_state.json",
                       *(f"step {i}" for i in (60, 70, 80))]  # fmt: skip
    others = [value for key, value in rows if key == "beside"]
    assert others == ["usual: best eval loss 2.0000, at step 2", "silent: was not evaluated"]
    assert table([("a", "1"), ("bb", "2"), ("bb", "3")]) == "a   1\nbb  2\n    3", "a name is written once"


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"loss": 1.5, "learning_rate": 1e-3}, "step     7 of 40  loss 1.5000  lr 1.00e-03"),
        ({"loss": 1.5, "learning_rate": 1e-3, "emo/coefficient": 0.5, "emo/effective_lr": 5e-4, "emo/scalar": 0.1},
         "step     7 of 40  loss 1.5000  lr 1.00e-03 × 0.500 → 5.00e-04  σ +0.100"),
        ({"eval_loss": 1.5, "eval_accuracy": 0.5, "eval_perplexity": 4.5},
         "step     7 of 40  eval loss 1.5000  accuracy 0.5000  perplexity 4.5000"),
        ({"eval_weights_loss": 1.5}, None),
        ({"train_runtime": 3.0, "train_loss": 1.0}, None),
    ],
)  # fmt: skip
def test_a_log_entry_is_a_short_line(logs: dict[str, float], line: str | None) -> None:
    assert log_line(logs, TrainerState(global_step=7, max_steps=40), [ACCURACY, PERPLEXITY]) == line
