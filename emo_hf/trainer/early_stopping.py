"""The self-stop signal as early stopping, for those who add their callbacks in Python."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer.self_stop import SelfStop, SelfStopWatch

logger = logging.getLogger(__name__)


class EmoEarlyStoppingCallback(TrainerCallback):
    """Turns the self-stop signal of an emo optimizer, or of an attached emotion, into early stopping.

    The same as `optim_args="self_stop=stop,…"`, for those who add their callbacks in Python. Flat steps are counted by
    the optimizer, so the count is in every checkpoint and goes on when training is resumed.

    Args:
        action: `stop`, `save`, `log` or `off`.
        patience: windows of 32 steps for which training must be flat.
        min_steps: steps after warm-up that are never counted.

    Raises:
        ValueError: if an argument is not acceptable.
    """

    def __init__(self, action: str = "stop", patience: int = SelfStop.patience, min_steps: int = SelfStop.min_steps):
        self._self_stop = SelfStop(action=action, patience=patience, min_steps=min_steps)
        self._watch = SelfStopWatch(self._self_stop)
        self._has_looked = self._in_training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch = SelfStopWatch(self._self_stop)
        self._has_looked, self._in_training = False, True

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        # Not sooner: a callback that comes later gives the optimizer its emotion when training begins.
        if not self._has_looked and unwrap(optimizer) is None:
            logger.warning(
                "EmoEarlyStoppingCallback has nothing to watch: the optimizer is %s, not an emo optimizer, and no "
                "emotion was attached to it.",
                type(getattr(optimizer, "optimizer", optimizer)).__name__,
            )
        self._has_looked = True
        self._watch.before_step(optimizer)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._watch.look(optimizer, args, state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._in_training:
            self._watch.look(optimizer, args, state, control, has_evaluated=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._in_training = False
