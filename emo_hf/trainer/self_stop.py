"""The self-stop signal of an emotion: when it is believed, and what is done then."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emo_hf.laws.law import WINDOW
from emo_hf.losses.same_options import LOCAL
from emo_hf.reading import Option, one_of, read_value, whole_number

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from emo_hf.optim.has_emotion import HasEmotion

logger = logging.getLogger(__name__)

OPTIONS: dict[str, Option] = {
    "self_stop": Option(
        "log", one_of("off", "log", "save", "stop"), "when training seems over: log it, save, stop, or do nothing"
    ),
    "self_stop_patience": Option(4, whole_number(1), "windows of 32 steps for which training must be flat"),
    "self_stop_min_steps": Option(200, whole_number(0), "steps after warm-up that do not count"),
}
"""The fields of `SelfStop`, as options of a Trainer."""

_FIELDS = {"self_stop": "action", "self_stop_patience": "patience", "self_stop_min_steps": "min_steps"}
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
        for option, field in _FIELDS.items():
            given = getattr(self, field)
            given = "off" if field == "action" and given is False else given  # what YAML makes of `off`
            object.__setattr__(self, field, read_value(field, given, OPTIONS[option].read))

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SelfStop:
        """What `OPTIONS` say, as text or as values; others are passed over."""
        return cls(**{field: options[option] for option, field in _FIELDS.items() if option in options})

    def flat_long_enough(self, flat_steps: int, step: int, warmup_steps: int) -> bool:
        """Whether training has been flat for long enough at a step.

        Args:
            flat_steps: steps on end that training has been flat.
            step: optimizer steps done in the run.
            warmup_steps: steps of learning-rate warm-up in the run.
        """
        return min(flat_steps, step - warmup_steps - self.min_steps) >= self.patience * WINDOW

    def refuse_local_emotion(self, emo: HasEmotion, world_size: int) -> None:
        """Raise where each rank would decide for itself, and leave the others waiting."""
        if self.action in ("save", "stop") and emo.emo_sync == LOCAL and world_size > 1:
            raise ValueError(
                f"self_stop={self.action} needs one emotion for all ranks: with emo_sync=local each would decide for "
                "itself, and leave the others waiting. Use self_stop=log"
            )


class SelfStopWatch:
    """Watches the emotion of one run, and does what a `SelfStop` says. The same on every rank, as the emotion is.

    Args:
        self_stop: what is to be done.
        emo: an emo optimizer, or what is attached to another one.
        args, state: the Trainer's.

    Raises:
        ValueError: if each rank would decide for itself.
    """

    def __init__(self, self_stop: SelfStop, emo: HasEmotion, args: TrainingArguments, state: TrainerState) -> None:
        self._self_stop, self._emo, self._args, self._state = self_stop, emo, args, state
        self_stop.refuse_local_emotion(emo, args.world_size)
        action, law = self_stop.action, emo._engine.law
        self._has_decided = emo.emotion.has_decided_to_stop  # what was decided before is not news
        if action == "stop" and law.decides_to_stop and getattr(law, "end", True):
            _end_with_the_best(args, state)

    def look(self, control: TrainerControl, *, has_evaluated: bool = False) -> None:
        """Look at the emotion after a step, or after an evaluation that it has heard."""
        action, emotion, args, step = self._self_stop.action, self._emo.emotion, self._args, self._state.global_step
        if action == "off":
            return
        believed, begins, said = emotion.has_decided_to_stop, not self._has_decided, "The law has decided to stop"
        self._has_decided = believed
        if not believed and not has_evaluated and emotion.flat_steps >= self._self_stop.patience * WINDOW:
            flat, warmup = emotion.flat_steps, args.get_warmup_steps(self._state.max_steps)
            believed = self._self_stop.flat_long_enough(flat, step, warmup)
            begins = not self._self_stop.flat_long_enough(flat - 1, step - 1, warmup)
            said = f"Training has been flat for {flat} steps, loss average {emotion.long:.4g}"
        if not believed:
            return
        # What the law has decided has been said, and `log` does no more.
        if begins and self._state.is_world_process_zero and not (self._has_decided and action == "log"):
            done, epoch = _WHAT_IS_DONE[action], self._state.epoch or 0.0
            logger.warning("%s (step %d, epoch %.2f): %s.", said, step, epoch, done)
        if action == "stop":
            control.should_training_stop = True
            # What is due at the end of an epoch the Trainer does by itself now.
            control.should_log |= args.logging_strategy not in _NOT_NOW
            control.should_evaluate |= args.eval_strategy not in _NOT_NOW and not has_evaluated
            control.should_save |= args.save_strategy not in _NOT_NOW
        control.should_save |= action == "save" and begins


def _end_with_the_best(args: TrainingArguments, state: TrainerState) -> None:
    """Have a run that evaluations may end give the best of its models, not the last; or say what is in the way."""
    if args.load_best_model_at_end or args.eval_strategy == "no":
        return
    in_steps = args.eval_strategy == "steps"
    matches = args.save_strategy == args.eval_strategy and not (in_steps and state.save_steps % state.eval_steps)
    if matches or args.save_strategy == "best":
        args.load_best_model_at_end = True
        if args.metric_for_best_model is None:
            args.metric_for_best_model, args.greater_is_better = "loss", False
        logger.warning("Evaluations may end this run: load_best_model_at_end is on, so that it gives the best model.")
        return
    multiple = f" with save_steps a multiple of eval_steps={state.eval_steps}" if in_steps else ""
    logger.warning(
        "Evaluations may end this run, and the model at its end is then the last, not the best: the best is kept with "
        "save_strategy=%s%s (given: save_strategy=%s).", args.eval_strategy.value, multiple, args.save_strategy.value
    )  # fmt: skip
