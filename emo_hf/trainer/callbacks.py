"""The Trainer's callbacks: an emotion or an average for any optimizer, metrics, decisions, the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.nn.modules.batchnorm import _NormBase
from transformers import TrainerCallback, TrainerState, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.optim.attach import attach
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.backward import HOW, StepInBackward, step_in_backward
from emo_hf.optim.family import family_names
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.options import TABLE
from emo_hf.optim.saving import EMOTION_KEY
from emo_hf.reading import optional, read_value
from emo_hf.trainer import patches
from emo_hf.trainer.checkpoints import begin_overwriting, warn_if_cut_short
from emo_hf.trainer.factory import refuse_early, refuse_steps_in_backward
from emo_hf.trainer.notes import RunNotes
from emo_hf.trainer.options import CALLBACK_OPTIONS, EmoOptions, as_text
from emo_hf.trainer.self_stop import SelfStop, SelfStopWatch

logger = logging.getLogger(__name__)

EVALUATION = "eval_"
"""What the Trainer puts before the name of a metric, unless it begins so."""


class EmoCallback(TrainerCallback):
    """Gives a Trainer's optimizer an emotion or an average of the weights, and does what either asks for.

    `emo_hf.register()` makes it one of the Trainer's default callbacks, and it does nothing where there is neither.
    One that is given to a Trainer takes the place of the registered one. What it does:

    - Metrics of the emotion are put into every training log line: `state.log_history`, every reporter, and some of
      them on the console. Their mean, minimum and maximum cover all steps since the line before.
    - Decisions of the law are log lines, and data in `trainer_state.json`.
    - The parameters hold the average of the weights while the Trainer evaluates or saves, and after training.
    - `optim_args` such as `self_stop=stop` are obeyed.
    - A checkpoint that is about to be written over counts as cut short from then on, so that a kill in the middle
      cannot leave one of two runs that seems whole.

    Args:
        emotion: a law's name, as `emo_law` takes it: the Trainer's optimizer, whichever it is, is given an emotion of
            that law when training begins (see `emo_hf.attach`). Emo optimizers have one of their own. It is saved with
            the optimizer, and in `trainer_state.json` for those whose loading passes over it (FSDP).
        average_weights: whether an average of the weights is kept, evaluated and saved: True, False, "rounded" or
            "cpu", as for `attach`; None for what the law does by itself. It needs no emotion.
        self_stop: what is done for such an optimizer when training has gone flat; a `SelfStop`, or its action.
        console: "short" prints some of the metrics, "all" prints all.
        **options: options of the law, `sync`, `self_stop_patience` and `self_stop_min_steps`.

    Raises:
        ValueError: if an argument is not acceptable.
    """

    is_emo_callback: ClassVar[bool] = True
    for_every_trainer: ClassVar[Mapping[str, Any]] = {}
    """Arguments that count where none are given: how `emo-hf run` reaches a script's Trainers."""

    def __init__(
        self, emotion: str | None = None, *, average_weights: bool | str | None = None,
        self_stop: SelfStop | str | None = None, console: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        named = {"average_weights": average_weights, "self_stop": self_stop, "console": console}
        given = {"emotion": emotion, **named, **options}
        chosen = {**self.for_every_trainer, **{key: value for key, value in given.items() if value is not None}}
        self._emotion: str | None = chosen.pop("emotion", None)
        average = chosen.pop("average_weights", None)
        self._average = read_value("average_weights", average, TABLE["average_weights"].read)
        console = chosen.pop("console", None)
        self._console = read_value("console", console, optional(CALLBACK_OPTIONS["console"].read))
        if self._emotion is None and chosen:
            raise ValueError(
                f"EmoCallback was given {', '.join(chosen)} but no emotion that this is for: name a law, "
                "emotion='v3.1'"
            )
        stop = chosen.get("self_stop")
        self._if_attached = stop if isinstance(stop, SelfStop) else SelfStop.of(chosen)
        self._law_options = {key: value for key, value in chosen.items() if key not in CALLBACK_OPTIONS}
        if self._emotion is not None:  # refuses what is wrong at once
            attach(torch.optim.SGD([torch.zeros(1)], lr=1.0), self._emotion, **self._law_options)
        self._args: TrainingArguments | None = None  # those that have been read
        self._options = EmoOptions()
        self._watch: SelfStopWatch | None = None
        self._notes = RunNotes()
        self._in_backward: StepInBackward | None = None
        patches.install()

    # Before and at the beginning of training

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._read(args)  # bad options shall fail before data and model are prepared

    def _read(self, args: TrainingArguments) -> None:
        self._args, self._options = args, EmoOptions()
        metric, name = _own_metric(args), getattr(args.optim, "value", args.optim)
        if metric is not None and metric.startswith(PREFIX + "loss") and args.greater_is_better:
            logger.warning(
                "metric_for_best_model=%s with greater_is_better=True keeps the checkpoint of the largest loss: give "
                "greater_is_better=False. (The Trainer's default is False for names that end in 'loss' only.)", metric
            )  # fmt: skip
        if name not in family_names():
            return
        if isinstance(args.optim_args, Mapping):  # the Trainer goes on to split it as a text
            args.optim_args = as_text(args.optim_args)
        self._options = EmoOptions.of(args)
        if self._average is not None and "average_weights" not in self._options.optimizer:
            args.optim_args = ",".join(filter(None, [args.optim_args, f"average_weights={self._average}"]))
            self._options = EmoOptions.of(args)
        refuse_early(name, self._options)
        if self._options.optimizer.get(HOW):
            refuse_steps_in_backward(args)
        warn_if_cut_short(args.resume_from_checkpoint, args.output_dir)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, model: Any = None, **_: Any
    ) -> None:
        patches.install()
        if self._args is not args:  # it was added to the Trainer later
            self._read(args)
        self._watch, emo = None, unwrap(optimizer)
        if emo is None and (self._emotion is not None or self._average):
            emo = self._attach(optimizer, state)
        if emo is None:
            return
        if self._average and not emo.keeps_average:
            raise ValueError(
                f"EmoCallback(average_weights={self._average!r}): the optimizer was made without an average of the "
                "weights. Make it, or attach to it, with average_weights=True"
            )
        if isinstance(emo, Attachment) and self._emotion not in (None, emo.emotion.law):
            logger.warning("The optimizer has an emotion of the law %s already.", emo.emotion.law)
        if not state.global_step:
            emo.begin_run()
        emo.train()
        if model is not None and emo.keeps_average:
            _warn_of_batch_statistics(model)
        self._notes.begin(emo, state, self._console or self._options.callback.get("console"))
        self_stop = self._if_attached if isinstance(emo, Attachment) else SelfStop.of(self._options.callback)
        self._watch = SelfStopWatch(self_stop, emo, args, state)
        if isinstance(emo, EmoOptimizer):
            self._begin_in_backward(emo, optimizer, model, args)

    def _attach(self, optimizer: Any, state: TrainerState) -> Attachment:
        """Give the optimizer what was asked for; where it could not load it (FSDP), it is read from the notes."""
        has_loaded = any(group.get(EMOTION_KEY) for group in optimizer.param_groups)
        emo = attach(optimizer, self._emotion or "none", average_weights=self._average, **self._law_options)
        notes = state.stateful_callbacks.get(NOTES) or {}
        if EMOTION_KEY in notes and notes.get("step") == state.global_step and not has_loaded:
            emo.load_emotion(notes[EMOTION_KEY])
        elif state.global_step and not has_loaded:
            logger.warning("The checkpoint of step %d holds no emotion: it starts afresh.", state.global_step)
        return emo

    def _begin_in_backward(self, emo: EmoOptimizer, optimizer: Any, model: Any, args: TrainingArguments) -> None:
        """Steps in backward begin anew: accelerate may have replaced parameters since the optimizer was made."""
        if emo._backward is not None and emo._backward.is_armed:
            refuse_steps_in_backward(args)
        options = self._options.optimizer
        if options.get(HOW):
            self._in_backward = step_in_backward(model, optimizer, clip_value=options.get("clip_value"))

    # During training

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        _show_weights(optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self._notes.say_decisions(unwrap(optimizer), state)
        if self._watch is not None:
            self._watch.look(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **_: Any) -> None:
        emo = unwrap(optimizer)
        # SetFit has another name for `loss`; the summary at the end has no learning rate.
        if emo is not None and logs is not None and {"loss", "learning_rate"} & logs.keys():
            metrics = emo.metrics()
            logs.update(metrics)
            # The Trainer has filed its own copy of the line already.
            if state.log_history and state.log_history[-1].get("step") == state.global_step:
                state.log_history[-1].update(metrics)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, metrics: Any = None, **_: Any
    ) -> None:
        _show_weights(optimizer)
        name, emo = _own_metric(args), unwrap(optimizer)
        if name is not None and emo is not None and metrics is not None:
            current = emo.current_metrics()
            if name not in current:
                raise KeyError(
                    f"metric_for_best_model: the emotion has no metric {name!r}; it has: {', '.join(sorted(current))}"
                )
            metrics.setdefault(EVALUATION + name, current[name])

    def after_evaluation(self, args: Any, state: Any, control: Any, optimizer: Any, metrics: dict[str, float]) -> None:
        """Called when an evaluation in training is over, all of its sets: the law hears it, once a step."""
        emo, notes = unwrap(optimizer), state.stateful_callbacks.get(NOTES)
        losses = [value for key, value in metrics.items() if key.startswith(EVALUATION) and key.endswith("_loss")]
        if emo is None or notes is None or not losses:
            return
        mean = metrics.setdefault("eval_loss", sum(losses) / len(losses))  # of several sets, else it is there
        if notes.get("evaluated") != state.global_step:
            notes["evaluated"] = state.global_step
            name = EVALUATION + (args.metric_for_best_model or "loss").removeprefix(EVALUATION)
            chosen = metrics.get(name) if _own_metric(args) is None else None
            emo.hear_evaluation(float(mean if chosen is None else -chosen if args.greater_is_better else chosen))
        self._notes.say_decisions(emo, state)
        if self._watch is not None:
            self._watch.look(control, has_evaluated=True)

    def before_save(self, args: Any, state: Any, optimizer: Any, run_dir: str) -> None:
        """Called when the Trainer is about to write a checkpoint, with the average of the weights shown."""
        emo = unwrap(optimizer)
        if isinstance(emo, Attachment) and NOTES in state.stateful_callbacks:  # what `_attach` reads
            notes = {"step": state.global_step, EMOTION_KEY: emo.emotion_state()}
            state.stateful_callbacks[NOTES].update(notes)
        if emo is not None and args.should_save:
            begin_overwriting(run_dir, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        emo = unwrap(optimizer)
        if emo is not None and args.load_best_model_at_end and state.best_model_checkpoint:
            emo.drop_average()
        elif emo is not None:  # what is saved from now on is what was evaluated
            emo.finish_average()
        if self._in_backward is not None:
            self._in_backward.remove()
            self._in_backward = None


def _show_weights(optimizer: Any) -> None:
    """After an evaluation loop that is not transformers', and has left the average in the parameters."""
    emo = unwrap(optimizer)
    if emo is not None:
        emo.train()


def _warn_of_batch_statistics(model: torch.nn.Module) -> None:
    if any(isinstance(part, _NormBase) and part.track_running_stats for part in model.modules()):
        logger.warning(
            "The model keeps statistics of its batches (BatchNorm), and the average of the weights has none of its "
            "own: what is evaluated and saved has those of the weights. torch.optim.swa_utils.update_bn makes the "
            "right ones after training."
        )


def _own_metric(args: TrainingArguments) -> str | None:
    """The metric of the emotion that the best checkpoint is told by, if it is one."""
    name = (args.metric_for_best_model or "").removeprefix(EVALUATION)
    return name if name.startswith(PREFIX) else None


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
        self._watch: SelfStopWatch | None = None
        self._has_begun = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._watch, self._has_begun = None, False

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        # Not sooner: a callback that comes later may give the optimizer its emotion when training begins.
        if self._has_begun:
            return
        self._has_begun, emo = True, unwrap(optimizer)
        if emo is not None:
            self._watch = SelfStopWatch(self._self_stop, emo, args, state)
            return
        logger.warning(
            "EmoEarlyStoppingCallback has nothing to watch: the optimizer is %s, not an emo optimizer, and no "
            "emotion was attached to it.", type(getattr(optimizer, "optimizer", optimizer)).__name__
        )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._watch is not None:
            self._watch.look(control)

    def after_evaluation(self, args: Any, state: Any, control: Any, optimizer: Any, metrics: Any) -> None:
        """Called when an evaluation in training is over, all of its sets (see `patches`)."""
        if self._watch is not None:
            self._watch.look(control, has_evaluated=True)
