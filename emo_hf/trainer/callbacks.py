"""The Trainer's side: metrics in every log line, `optim_args` obeyed, an emotion for any optimizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.optim.attach import attach
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.checkpoint import EMOTION_KEY
from emo_hf.optim.family import family_names
from emo_hf.optim.sharding import own_elements
from emo_hf.optim.step_in_backward import StepInBackward
from emo_hf.trainer import in_backward
from emo_hf.trainer.checkpoints import begin_overwriting, warn_if_cut_short, warn_if_too_large
from emo_hf.trainer.decision_notes import begin_notes, say_decisions
from emo_hf.trainer.early_stopping import EmoEarlyStoppingCallback as EmoEarlyStoppingCallback
from emo_hf.trainer.factory import refuse_early
from emo_hf.trainer.options import parse_optim_args, read_options
from emo_hf.trainer.self_stop import SelfStop, SelfStopWatch

logger = logging.getLogger(__name__)


class EmoCallback(TrainerCallback):
    """Puts the metrics of an emotion into every training log line; does nothing where there is none.

    `emo_hf.register()` makes it one of the Trainer's default callbacks. The metrics reach `state.log_history`, the
    console and every reporter; their mean, minimum and maximum cover all steps since the line before. `optim_args`
    such as `self_stop=stop` are obeyed here too. A checkpoint that is about to be written over counts as cut short
    from then on, so that a kill in the middle cannot leave one of two runs that seems whole.

    Args:
        emotion: a law's name, as `emo_law` takes it: the Trainer's optimizer, whichever it is, is given an emotion of
            that law when training begins (see `emo_hf.attach`). Emo optimizers have one of their own. It is saved with
            the optimizer, and in `trainer_state.json` for those whose loading passes over it (FSDP).
        self_stop: what is done for such an optimizer when training has gone flat; see `SelfStop`.
        **law_options: options of the law, and `sync`, as `attach` takes them.

    Raises:
        ValueError: if an argument is not acceptable.
    """

    for_every_trainer: ClassVar[Mapping[str, Any]] = {}
    """Arguments that count where none are given: how `emo-hf run --emotion` reaches a script's Trainers."""

    def __init__(self, emotion: str | None = None, *, self_stop: SelfStop | None = None, **law_options: Any) -> None:
        given = {"emotion": emotion, "self_stop": self_stop, **law_options}
        given = {key: value for key, value in given.items() if value is not None}
        chosen = {**self.for_every_trainer, **given}
        self._emotion: str | None = chosen.pop("emotion", None)
        self._self_stop_if_attached: SelfStop | None = chosen.pop("self_stop", None)
        self._law_options = chosen
        if self._emotion is not None:  # refuses what is wrong at once
            attach(_any_optimizer(), self._emotion, **chosen)
        elif given:
            raise ValueError(
                f"EmoCallback was given {', '.join(given)} but no emotion that this is for: name a law, emotion='v3.1'"
            )
        self._self_stop: SelfStop | None = None
        self._watch: SelfStopWatch | None = None
        self._in_training = False
        self._ready_to_save: int | None = None  # the step of the newest checkpoint whose place was looked at
        self._attachment: Attachment | None = None
        self._in_backward: StepInBackward | None = None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Read here already: bad optim_args shall fail before data and model are prepared.
        self._self_stop = None
        name = getattr(args.optim, "value", args.optim)
        if name in family_names():
            given = parse_optim_args(args.optim_args)
            options = read_options(given)
            self._self_stop = SelfStop(**options.self_stop)
            refuse_early(name, options)
            in_backward.refuse_early(args, options)
            if isinstance(args.optim_args, Mapping):  # the Trainer goes on to split it as a text
                args.optim_args = as_text(given)
            warn_if_cut_short(args.resume_from_checkpoint, args.output_dir)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._ready_to_save, self._attachment, self._in_training = None, None, True
        emo = unwrap(optimizer)
        if self._emotion is not None and emo is None:
            emo = attach(optimizer, self._emotion, **self._law_options)
            self._resume(emo, state)
        if self._emotion is not None and isinstance(emo, Attachment):
            if emo.emotion.law != self._emotion:
                logger.warning("The optimizer has an emotion of the law %s already.", emo.emotion.law)
            self._attachment = emo
            self._self_stop = self._self_stop_if_attached or SelfStop()
        if emo is not None:
            begin_notes(emo, state)
            emo.know_horizon(state.max_steps)
        self._watch = None if self._self_stop is None else SelfStopWatch(self._self_stop)
        self._in_backward = in_backward.begin(args, kwargs.get("model"), optimizer)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._watch is not None:
            self._watch.before_step(optimizer)

    def _resume(self, attachment: Attachment, state: TrainerState) -> None:
        """Where an optimizer that had no emotion yet could not load it (FSDP), it is read from the notes."""
        if not state.global_step or attachment.emotion.observations:
            return
        notes = state.stateful_callbacks.get(NOTES) or {}
        if EMOTION_KEY in notes and notes.get("step") == state.global_step:
            attachment.load_emotion(notes[EMOTION_KEY])
        else:
            logger.warning("The checkpoint of step %d holds no emotion: it starts afresh.", state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        say_decisions(unwrap(optimizer), state)
        if self._watch is not None:
            self._watch.look(optimizer, args, state, control)
        self._before_save(args, state, control, optimizer)
        self._note_emotion(state)

    def _note_emotion(self, state: TrainerState) -> None:
        """What `_resume` reads; also whether what is about to be saved is the average of the weights."""
        if self._attachment is not None:
            notes = {"step": state.global_step, EMOTION_KEY: self._attachment.emotion_state()}
            state.stateful_callbacks[NOTES].update(notes)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._before_save(args, state, control, optimizer)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._in_training:  # what is measured afterwards decides nothing
            return
        emo, loss = unwrap(optimizer), (metrics or {}).get("eval_loss")
        notes = state.stateful_callbacks.get(NOTES)
        if emo is not None and loss is not None and notes is not None:
            evaluation = [state.global_step, float(loss)]
            if notes.get("evaluation") != evaluation:  # another of these callbacks may have passed it on
                notes["evaluation"] = evaluation
                emo.hear_evaluation(float(loss))
        say_decisions(emo, state)
        if self._watch is not None:
            self._watch.look(optimizer, args, state, control, has_evaluated=True)
        self._before_save(args, state, control, optimizer)
        self._note_emotion(state)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._in_training = False
        emo = unwrap(optimizer)
        if emo is not None:  # what is saved at the end is what was evaluated
            if args.load_best_model_at_end and state.best_model_checkpoint:
                emo.forget_average()
            else:
                emo.eval()
        if self._in_backward is not None:
            self._in_backward.remove()
            self._in_backward = None

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
        if control.should_save and emo is not None:
            emo.eval()
        if not control.should_save or control.should_evaluate or not args.should_save or emo is None:
            return
        step = state.global_step
        if state.is_hyper_param_search or step == self._ready_to_save:  # each trial has a folder of its own
            return
        self._ready_to_save = step
        begin_overwriting(args.output_dir, step)
        tensors = [param for group in emo.param_groups for param in group["params"]]
        if not args.save_only_model:
            # Optimizers of others keep numbers and None there too.
            kept = [value for state_of in emo.state.values() for value in state_of.values()]
            tensors += [value for value in kept if isinstance(value, torch.Tensor)]
        warn_if_too_large(args.output_dir, step, sum(own_elements(tensor).nbytes for tensor in tensors))


def as_text(optim_args: Mapping[str, Any]) -> str:
    """`optim_args` that were given as a mapping in the form of `--optim_args`."""

    def value(given: Any) -> str:
        return "/".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)

    return ",".join(f"{key}={value(given)}" for key, given in optim_args.items())


def _any_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
