"""`metric_for_best_model="emo/loss_long"`: the emotion's metrics, where the Trainer looks for the best checkpoint."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.metrics import PREFIX

logger = logging.getLogger(__name__)

EVALUATION = "eval_"
"""What the Trainer puts before the name of the metric, unless it begins so."""


class BestMetricCallback(TrainerCallback):
    """Adds one metric of the emotion to those of an evaluation, where the best checkpoint is to be told by it.

    `emo_hf.register()` makes it one of the Trainer's default callbacks; it does nothing for other metrics. What is
    compared is the emotion at the time of the evaluation: `emo/loss_long` is the slow average of the training loss.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        name = _named(args)
        if name is not None and name.startswith(PREFIX + "loss") and args.greater_is_better:
            logger.warning(
                "metric_for_best_model=%s with greater_is_better=True keeps the checkpoint of the largest loss: give "
                "greater_is_better=False. (The Trainer's default is False for names that end in 'loss' only.)", name
            )  # fmt: skip

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        name, emo = _named(args), unwrap(optimizer)
        if name is None or emo is None or metrics is None:
            return
        current = emo.current_metrics()
        if name not in current:
            raise KeyError(
                f"metric_for_best_model: the emotion has no metric {name!r}; it has: {', '.join(sorted(current))}"
            )
        metrics.setdefault(EVALUATION + name, current[name])


def _named(args: TrainingArguments) -> str | None:
    name = (args.metric_for_best_model or "").removeprefix(EVALUATION)
    return name if name.startswith(PREFIX) else None
