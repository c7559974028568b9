"""The Trainer's callbacks: an emotion or an average for any optimizer, metrics, decisions, the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch.nn.modules.batchnorm import _NormBase
from transformers import TrainerCallback, TrainerState, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.laws.words import SKIPPED, text_of
from emo_hf.optim.attach import attach
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.backward_limits import HOW
from emo_hf.optim.family import family_names
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.options import TABLE
from emo_hf.optim.saving import EMOTION_KEY
from emo_hf.optim.sharding import own_elements
from emo_hf.optim.step_in_backward import StepInBackward
from emo_hf.reading import read_value
from emo_hf.trainer import in_backward, patches
from emo_hf.trainer.checkpoints import begin_overwriting, warn_if_cut_short, warn_if_too_large
from emo_hf.trainer.console import ALL
from emo_hf.trainer.factory import refuse_early
from emo_hf.trainer.options import CALLBACK_OPTIONS, EmoOptions
from emo_hf.trainer.options import as_text as as_text
from emo_hf.trainer.self_stop import SelfStop, SelfStopWatch

logger = logging.getLogger(__name__)

MOST_NOTES = 300
"""Decisions that are kept of a run; of more the oldest steps that were left out go first."""

EVALUATION = "eval_"
"""What the Trainer puts before the name of a metric, unless it begins so."""

_NO_OPTIONS = {"params", "lr", "name", EMOTION_KEY}  # of a parameter group
_OF_OTHERS = {"initial_lr", "betas", "eps", "weight_decay"}  # options of optimizers whose groups may hold state too


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
        self._average = read_value(
            "average_weights", chosen.pop("average_weights", None), TABLE["average_weights"].read
        )
        self._console = chosen.pop("console", None)
        if self._console is not None:
            self._console = read_value("console", self._console, CALLBACK_OPTIONS["console"].read)
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
        self._known: list[Note] = []  # decisions that have been said
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
            in_backward.refuse(args)
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
        parts = () if model is None or not emo.keeps_average else model.modules()
        if any(isinstance(part, _NormBase) and part.track_running_stats for part in parts):
            logger.warning(
                "The model keeps statistics of its batches (BatchNorm), and the average of the weights has none of "
                "its own: what is evaluated and saved has those of the weights. torch.optim.swa_utils.update_bn makes "
                "the right ones after training."
            )
        self._begin_notes(emo, state)
        self_stop = self._if_attached if isinstance(emo, Attachment) else SelfStop.of(self._options.callback)
        self._watch = SelfStopWatch(self_stop)
        self._watch.begin(optimizer, args, state)
        self._in_backward = in_backward.begin(args, self._options, model, optimizer)

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

    def after_loading(self, given: list[dict[str, Any]], optimizer: Any) -> None:
        """Called when a checkpoint of the optimizer has been loaded: name the options that it has overridden.

        Args:
            given: the parameter groups as they were before.
            optimizer: has loaded.
        """
        emo = unwrap(optimizer)
        if emo is None and self._emotion is None and not self._average:
            return
        overridden: dict[str, str] = {}
        for before, after in zip(given, optimizer.param_groups, strict=False):
            for key in before.keys() & (after.keys() - _NO_OPTIONS if isinstance(emo, EmoOptimizer) else _OF_OTHERS):
                if before[key] != after.get(key):
                    name = "learning_rate" if key == "initial_lr" else key
                    overridden.setdefault(name, f"{name} {after.get(key)} (given: {before[key]})")
        if overridden:
            logger.warning(
                "The optimizer goes on with the options of its checkpoint: %s. To have those that were given, resume "
                "from the weights only.", ", ".join(overridden[name] for name in sorted(overridden))
            )  # fmt: skip

    # During training

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        _show_weights(optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self._say_decisions(unwrap(optimizer), state)
        if self._watch is not None:
            self._watch.look(optimizer, args, state, control)

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
        self._say_decisions(emo, state)
        if self._watch is not None:
            self._watch.look(optimizer, args, state, control, has_evaluated=True)

    def before_save(self, args: Any, state: Any, optimizer: Any, run_dir: str) -> None:
        """Called when the Trainer is about to write a checkpoint, with the average of the weights shown."""
        emo = unwrap(optimizer)
        if isinstance(emo, Attachment) and NOTES in state.stateful_callbacks:  # what `_attach` reads
            notes = {"step": state.global_step, EMOTION_KEY: emo.emotion_state()}
            state.stateful_callbacks[NOTES].update(notes)
        if emo is None or not args.should_save:
            return
        begin_overwriting(run_dir, state.global_step)
        tensors = [param for group in emo.param_groups for param in group["params"]]
        if not args.save_only_model:
            # Optimizers of others keep numbers and None there too.
            kept = [value for state_of in emo.state.values() for value in state_of.values()]
            tensors += [value for value in kept if isinstance(value, torch.Tensor)]
        warn_if_too_large(run_dir, state.global_step, sum(own_elements(tensor).nbytes for tensor in tensors))

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        emo = unwrap(optimizer)
        if emo is not None and args.load_best_model_at_end and state.best_model_checkpoint:
            emo.drop_average()
        elif emo is not None:  # what is saved from now on is what was evaluated
            emo.finish_average()
        if self._in_backward is not None:
            self._in_backward.remove()
            self._in_backward = None

    # What the law has decided

    def _begin_notes(self, emo: Any, state: TrainerState) -> None:
        """Begin the notes of a run, or go on with those of the checkpoint that it was resumed from."""
        earlier = state.stateful_callbacks.get(NOTES) or {} if state.global_step else {}
        kept = {key: earlier[key] for key in ("decisions", "evaluated") if key in earlier}
        console = {"console": ALL} if (self._console or self._options.callback.get("console")) == ALL else {}
        # Not as an ExportableState: the Trainer cannot save one when the run that it resumes had none, and makes those
        # that it restores anew, without their `on_init_end`.
        state.stateful_callbacks[NOTES] = {"law": emo.emotion.law, "decisions": [], **kept, **console}
        self._known = emo.decisions

    def _say_decisions(self, emo: Any, state: TrainerState) -> None:
        """Log and note what the law has decided since it was last asked."""
        notes = state.stateful_callbacks.get(NOTES)
        decisions = [] if emo is None or notes is None else emo.decisions
        if notes is None or decisions[-1:] == self._known[-1:]:  # what nearly every step is
            return
        new = [note for note in decisions if note not in self._known]
        said_before = {note["kind"] for note in notes["decisions"]}
        self._known = decisions
        notes["decisions"] = _shortened([*notes["decisions"], *map(asdict, new)])
        for note in new if state.is_world_process_zero else ():
            if note.kind != SKIPPED or SKIPPED not in said_before:  # of such steps the logs have the count
                logger.warning("Step %d: %s", note.step, text_of(note, first=note.kind not in said_before))
            said_before.add(note.kind)


def _show_weights(optimizer: Any) -> None:
    """After an evaluation loop that is not transformers', and has left the average in the parameters."""
    emo = unwrap(optimizer)
    if emo is not None:
        emo.train()


def _shortened(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spare = max(len(decisions) - MOST_NOTES, 0)
    left_out = [place for place, note in enumerate(decisions) if note["kind"] == SKIPPED][:spare]
    return [note for place, note in enumerate(decisions) if place not in left_out][-MOST_NOTES:]


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
        self._watch = SelfStopWatch(SelfStop(action=action, patience=patience, min_steps=min_steps))
        self._has_begun = False

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self._watch, self._has_begun = SelfStopWatch(self._watch.self_stop), False
        self._watch.begin(optimizer, args, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        # Not sooner: a callback that comes later may give the optimizer its emotion when training begins.
        if not self._has_begun and unwrap(optimizer) is None:
            logger.warning(
                "EmoEarlyStoppingCallback has nothing to watch: the optimizer is %s, not an emo optimizer, and no "
                "emotion was attached to it.",
                type(getattr(optimizer, "optimizer", optimizer)).__name__,
            )
        self._has_begun = True
        self._watch.begin(optimizer, args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self._watch.look(optimizer, args, state, control)

    def after_evaluation(self, args: Any, state: Any, control: Any, optimizer: Any, metrics: Any) -> None:
        """Called when an evaluation in training is over, all of its sets (see `patches`)."""
        self._watch.look(optimizer, args, state, control, has_evaluated=True)
