"""The Trainer's progress table in notebooks, with the dynamic learning rate in it.

Needs IPython, which a notebook has, so it is imported by nothing outside of one.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils.notebook import NotebookProgressCallback

from emo_hf.integrations.accelerate import unwrap

RATE, FACTOR = "Effective LR", "Factor"
"""The columns that the table has more."""


class EmoNotebookProgressCallback(NotebookProgressCallback):
    """transformers' progress bar and table for notebooks, with two columns more where there is an emotion.

    `Effective LR` is the learning rate that the last step before a line was taken with, of the first parameter group;
    `Factor` is what the emotion multiplied the scheduler's by. Runs without an emotion look as ever.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if args.eval_strategy == "no" and "loss" in (logs or {}):  # else the table got no line
            self._complete("Step", state.global_step, optimizer)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_evaluate(args, state, control, metrics=metrics, **kwargs)
        if args.eval_strategy == "epoch":
            self._complete("Epoch", int(state.epoch or 0), optimizer)
        else:
            self._complete("Step", state.global_step, optimizer)

    def _complete(self, first_column: str, place: int, optimizer: Any) -> None:
        """Complete the line that the table got last."""
        emo, table = unwrap(optimizer), self.training_tracker
        if emo is None or table is None:
            return
        rate = next(iter(emo.effective_lr.values()), None)
        shown = {} if rate is None else {RATE: f"{rate:.4g}"}  # Adafactor may have none
        shown[FACTOR] = f"{emo.emotion.coefficient:.4g}"
        table.write_line({first_column: place, **shown})  # displayed with the bar's next move
