"""The Trainer's side: metrics in every log line, and self-stop as early stopping."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.emotion.metrics import PREFIX
from emo_hf.emotion.v3_1 import WINDOW
from emo_hf.integrations.accelerate import unwrap
from emo_hf.optim.tensors.dtensor import own_elements
from emo_hf.trainer.checkpoints import begin_overwriting, warn_if_too_large, what_is_missing
from emo_hf.trainer.factory import OPTIMIZERS
from emo_hf.trainer.options import SELF_STOP_ACTIONS, parse_optim_args, read_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelfStop:
    """When the self-stop signal is believed, and what is done then.

    v3.1's raw signal speaks as soon as 32 scalars are quiet, which a slow start also is. It is believed once training
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


class EmoCallback(TrainerCallback):
    """Puts an emo optimizer's metrics into every training log line; does nothing with other optimizers.

    `emo_hf.register()` makes it one of the Trainer's default callbacks. The metrics reach `state.log_history`, the
    console and every reporter; their mean, minimum and maximum cover all steps since the line before. `optim_args`
    such as `self_stop=stop` are obeyed here too. A checkpoint that is about to be written over counts as cut short
    from then on, so that a kill in the middle cannot leave one of two runs that seems whole.
    """

    def __init__(self) -> None:
        self._self_stop: SelfStop | None = None
        self._ready_to_save: int | None = None  # the step of the newest checkpoint whose place was looked at

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Read here already: bad optim_args shall fail before data and model are prepared.
        self._self_stop = None
        if getattr(args.optim, "value", args.optim) in OPTIMIZERS:
            self._self_stop = SelfStop(**read_options(parse_optim_args(args.optim_args)).self_stop)
            _warn_about_torn_checkpoint(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ready_to_save = None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._self_stop is not None:
            self._self_stop.act(optimizer, args, state, control)
        self._before_save(args, state, control, optimizer)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._before_save(args, state, control, optimizer)

    on_evaluate = on_epoch_end

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._before_save(args, state, control, optimizer)  # other callbacks may have asked for it after the step
        emo = unwrap(optimizer)
        if emo is None or logs is None or "loss" not in logs or PREFIX + "scalar" in logs:
            return
        metrics = emo.metrics()
        logs.update(metrics)
        # The Trainer has filed its own copy of the line already.
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(metrics)

    def _before_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any
    ) -> None:
        """Where the Trainer is about to save: after the step, or after the evaluation that comes in between."""
        emo = unwrap(optimizer)
        if not control.should_save or control.should_evaluate or not args.should_save or emo is None:
            return
        step = state.global_step
        if state.is_hyper_param_search or step == self._ready_to_save:  # each trial has a folder of its own
            return
        self._ready_to_save = step
        begin_overwriting(args.output_dir, step)
        tensors = [param for group in emo.param_groups for param in group["params"]]
        if not args.save_only_model:
            tensors += [tensor for state_of in emo.state.values() for tensor in state_of.values()]
        warn_if_too_large(args.output_dir, step, sum(own_elements(tensor).nbytes for tensor in tensors))


class EmoEarlyStoppingCallback(TrainerCallback):
    """Turns the self-stop signal of an emo optimizer into early stopping.

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

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if unwrap(optimizer) is None:
            logger.warning(
                "EmoEarlyStoppingCallback has nothing to watch: the optimizer is %s, not an emo optimizer.",
                type(optimizer).__name__,
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._self_stop.act(optimizer, args, state, control)


def _warn_about_torn_checkpoint(args: TrainingArguments) -> None:
    """Say what is wrong with the checkpoint that a script was told to resume from, before torch says it its way."""
    named = args.resume_from_checkpoint
    if not isinstance(named, str) or not os.path.isdir(named):
        return
    flaw = what_is_missing(named)
    if flaw is not None:
        logger.warning(
            "resume_from_checkpoint=%s was not saved to its end: %s. emo_hf.last_whole_checkpoint(%r) gives the "
            "newest checkpoint that was.",
            named, flaw, args.output_dir,
        )  # fmt: skip
