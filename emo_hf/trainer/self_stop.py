"""When the self-stop signal is believed, and what is done then."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.law import WINDOW
from emo_hf.laws.words import text_of
from emo_hf.losses.same_options import LOCAL
from emo_hf.trainer.options import SELF_STOP_ACTIONS

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_NOT_NOW = ("no", "epoch")
_WHAT_IS_DONE = {"log": "it may be done", "save": "saving a checkpoint", "stop": "stopping"}


@dataclass(frozen=True, kw_only=True)
class SelfStop:
    """When the self-stop signal is believed, and what is done then.

    The signal of a law that decides (`Law.decides_to_stop`) is believed in the same step. v3.1's raw signal fires as
    soon as 32 scalars are quiet, which a slow start also is. It is believed once training has been flat (quiet, and
    the slow average of the loss not falling by 0.5 %) for `patience` windows of 32 steps, all of them after warm-up
    and after the first `min_steps` steps.

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


class SelfStopWatch:
    """Watches the emotion of one run, and does what a `SelfStop` says. The same on every rank, as the emotion is."""

    def __init__(self, self_stop: SelfStop) -> None:
        self.self_stop = self_stop
        self._decided: bool | None = None  # whether the law had decided to stop when it was last looked at

    def before_step(self, optimizer: Any) -> None:
        """Before a run's first step: what has been decided in a run that is resumed is not news."""
        emo = unwrap(optimizer)
        if self._decided is None and emo is not None:
            self._decided = emo.emotion.has_decided_to_stop

    def look(
        self,
        optimizer: Any,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        has_evaluated: bool = False,
    ) -> None:
        """Look at the emotion after a step, or after an evaluation that it has heard."""
        emo = unwrap(optimizer)
        if self.self_stop.action == "off" or emo is None:
            return
        if self.self_stop.action in ("save", "stop") and emo.emo_sync == LOCAL and args.world_size > 1:
            raise ValueError(
                f"self_stop={self.self_stop.action} needs one emotion for all ranks: with emo_sync=local each would "
                "decide for itself, and leave the others waiting. Use self_stop=log"
            )
        emotion = emo.emotion
        if emotion.has_decided_to_stop:
            said = text_of(emo.decisions[-1]) if emo.decisions else "done"
            self._act(said, args, state, control, begins=not self._decided, has_evaluated=has_evaluated)
        elif emotion.flat_steps >= self.self_stop.patience * WINDOW and not has_evaluated:  # not in nearly every step
            self._look_how_long_it_is_flat(emotion.flat_steps, emotion.long, args, state, control)
        self._decided = emotion.has_decided_to_stop

    def _look_how_long_it_is_flat(
        self, flat: int, loss: float, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        step, warmup = state.global_step, args.get_warmup_steps(state.max_steps)
        if self.self_stop.flat_long_enough(flat, step, warmup):
            begins = not self.self_stop.flat_long_enough(flat - 1, step - 1, warmup)
            said = f"Training has been flat for {flat} steps"
            self._act(f"{said}, loss average {loss:.4g}", args, state, control, begins=begins)

    def _act(
        self,
        said: str,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        begins: bool,
        has_evaluated: bool = False,
    ) -> None:
        action = self.self_stop.action
        if begins and state.is_world_process_zero:
            where = f"step {state.global_step}, epoch {state.epoch or 0.0:.2f}"
            logger.warning("%s (%s): %s.", said, where, _WHAT_IS_DONE[action])
        if action == "stop":
            control.should_training_stop = True
            # What is due at the end of an epoch the Trainer does by itself now.
            control.should_log = control.should_log or args.logging_strategy not in _NOT_NOW
            control.should_evaluate = control.should_evaluate or (
                args.eval_strategy not in _NOT_NOW and not has_evaluated
            )
            control.should_save = control.should_save or args.save_strategy not in _NOT_NOW
        if action == "save" and begins:
            control.should_save = True
