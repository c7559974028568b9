"""When the self-stop signal is believed, and what is done then."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from emo_hf.emotion.law import WINDOW
from emo_hf.integrations.accelerate import unwrap
from emo_hf.loss.rank_mean import LOCAL
from emo_hf.trainer.options import SELF_STOP_ACTIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelfStop:
    """When the self-stop signal is believed, and what is done then.

    v3.1's raw signal fires as soon as 32 scalars are quiet, which a slow start also is. It is believed once training
    has been flat (quiet, and the slow average of the loss not falling by 0.5 %) for `patience` windows of 32 steps,
    all of them after warm-up and after the first `min_steps` steps.

    Attributes:
        action: `off`; `log` one line; `save` a checkpoint; `stop` training, with a last log, evaluation and
            checkpoint where the Trainer's strategies ask for such.
        patience: windows of 32 steps for which training must be flat.
        min_steps: steps after warm-up that are never counted.
    """

    action: str = "log"
    patience: int = 4
    min_steps: int = 200

    def __post_init__(self) -> None:
        if self.action not in SELF_STOP_ACTIONS:
            raise ValueError(f"action must be one of {', '.join(SELF_STOP_ACTIONS)}, got {self.action!r}")
        if not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"patience must be a whole number of windows, at least 1, got {self.patience!r}")
        if not isinstance(self.min_steps, int) or self.min_steps < 0:
            raise ValueError(f"min_steps must be a whole number of steps, at least 0, got {self.min_steps!r}")

    def flat_long_enough(self, flat_steps: int, step: int, warmup_steps: int) -> bool:
        """Whether training has been flat for long enough at a step.

        Args:
            flat_steps: steps on end that training has been flat.
            step: optimizer steps done in the run.
            warmup_steps: steps of learning-rate warm-up in the run.
        """
        return min(flat_steps, step - warmup_steps - self.min_steps) >= self.patience * WINDOW

    def act(self, optimizer: Any, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Look at the emotion after a step and do what `action` says. The same on every rank, as the emotion is."""
        emo = unwrap(optimizer)
        if self.action == "off" or emo is None:
            return
        if self.action in ("save", "stop") and emo.emo_sync == LOCAL and args.world_size > 1:
            raise ValueError(
                f"self_stop={self.action} needs one emotion for all ranks: with emo_sync=local each would decide for "
                "itself, and leave the others waiting. Use self_stop=log"
            )
        flat, step = emo.emotion.flat_steps, state.global_step
        if flat < self.patience * WINDOW:  # what nearly every step is
            return
        warmup = args.get_warmup_steps(state.max_steps)
        if not self.flat_long_enough(flat, step, warmup):
            return
        begins = not self.flat_long_enough(flat - 1, step - 1, warmup)
        if begins and state.is_world_process_zero:
            logger.warning(
                "Training has been flat for %d steps (step %d, epoch %.2f, loss average %.4g): %s.",
                flat, step, state.epoch or 0.0, emo.emotion.long,
                {"log": "it may be done", "save": "saving a checkpoint", "stop": "stopping"}[self.action],
            )  # fmt: skip
        if self.action == "stop":
            control.should_training_stop = True
            control.should_log = args.logging_strategy != "no"
            control.should_evaluate = args.eval_strategy != "no"
        if self.action == "stop" or (self.action == "save" and begins):
            control.should_save = control.should_save or args.save_strategy != "no" or self.action == "save"
