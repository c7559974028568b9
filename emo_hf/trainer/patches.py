"""What is put around methods of transformers; where and why stands in `emo_hf/integrations/patches.py`.

`register()` and the first `EmoCallback` put it there; `unregister()` takes it away. Trainers without an emotion go
through it unchanged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from emo_hf.integrations import patches
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.saving import EMOTION_KEY
from emo_hf.trainer.checkpoints import warn_if_full
from emo_hf.trainer.options import ALL

Method = Callable[..., Any]

logger = logging.getLogger(__name__)

_NO_OPTIONS = {"params", "lr", "name", EMOTION_KEY}
"""What a parameter group holds beside options that a checkpoint may override."""

IS_EMO_CALLBACK = "is_emo_callback"
"""The attribute by which an `EmoCallback` is known."""

PRINTED = tuple(PREFIX + name for name in ("effective_lr", "coefficient", "scalar"))
PRINTED_IF_ANY = tuple(PREFIX + name for name in ("skipped", "nonfinite_gradients"))
"""Counts of what has been left out."""


def install() -> None:
    """Put them there; doing it twice changes nothing."""
    for place, around in _methods().items():
        patches.put(place, around)


def uninstall() -> None:
    """Take them away."""
    for place in _methods():
        patches.take_back(place)


def _methods() -> dict[str, Callable[[Method], Method]]:
    """Place → what makes the method that takes its place."""
    methods: dict[str, Callable[[Method], Method]] = {
        "transformers:Trainer.evaluation_loop": _with_average,
        "transformers:Trainer.save_model": _with_average,
        "transformers:Trainer._save_checkpoint": _saves,
        "transformers:Trainer._evaluate": _evaluates,
        "transformers:Trainer._load_optimizer_and_scheduler": _loads,
        "transformers.trainer_callback:CallbackHandler.add_callback": _adds_callback,
        "transformers.trainer_callback:ProgressCallback.on_log": _prints_less,
        "transformers.trainer_callback:PrinterCallback.on_log": _prints_less,
    }
    if "transformers.utils.notebook" in sys.modules:  # it needs IPython
        notebook = "transformers.utils.notebook:NotebookProgressCallback."
        methods |= {notebook + name: _adds_columns for name in ("on_log", "on_evaluate")}
    return methods


def _average_shown(trainer: Any) -> AbstractContextManager[None]:
    emo = unwrap(getattr(trainer, "optimizer", None))
    return nullcontext() if emo is None else emo.average_shown()


def _listeners(trainer: Any, method: str) -> list[Method]:
    """A method of those callbacks that have it."""
    callbacks = trainer.callback_handler.callbacks
    return [getattr(callback, method) for callback in callbacks if hasattr(callback, method)]


def _with_average(original: Method) -> Method:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _average_shown(self):
            return original(self, *args, **kwargs)

    return method


def _saves(original: Method) -> Method:
    def _save_checkpoint(self: Any, model: Any, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        folder = self._get_output_dir(trial)
        with _average_shown(self):
            for before_save in _listeners(self, "before_save"):
                before_save(self.args, self.state, self.optimizer, folder)
            try:
                return original(self, model, trial, *args, **kwargs)
            except Exception:
                warn_if_full(folder, self.state.global_step)
                raise

    return _save_checkpoint


def _evaluates(original: Method) -> Method:
    def _evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = original(self, *args, **kwargs)
        for after_evaluation in _listeners(self, "after_evaluation"):
            after_evaluation(self.args, self.state, self.control, self.optimizer, metrics)
        return metrics

    return _evaluate


def _loads(original: Method) -> Method:
    def _load_optimizer_and_scheduler(self: Any, checkpoint: Any) -> Any:
        is_ours = checkpoint and isinstance(unwrap(self.optimizer), EmoOptimizer)
        given = [dict(group) for group in self.optimizer.param_groups] if is_ours else []
        result = original(self, checkpoint)
        overridden: dict[str, str] = {}
        for before, after in zip(given, self.optimizer.param_groups, strict=False):
            for key in before.keys() & after.keys() - _NO_OPTIONS:
                if before[key] != after[key]:
                    name = "learning_rate" if key == "initial_lr" else key
                    overridden.setdefault(name, f"{name} {after[key]} (given: {before[key]})")
        if overridden:
            logger.warning(
                "The optimizer goes on with the options of its checkpoint: %s. To have those that were given, resume "
                "from the weights only.", ", ".join(overridden[name] for name in sorted(overridden))
            )  # fmt: skip
        return result

    return _load_optimizer_and_scheduler


def _adds_callback(original: Method) -> Method:
    def add_callback(self: Any, callback: Any) -> Any:
        from transformers.trainer_callback import DefaultFlowCallback

        if not getattr(callback, IS_EMO_CALLBACK, False):
            return original(self, callback)
        is_default = isinstance(callback, type)
        made = callback() if is_default else callback
        ours = [i for i, present in enumerate(self.callbacks) if getattr(present, IS_EMO_CALLBACK, False)]
        if not ours:
            flows = [i for i, present in enumerate(self.callbacks) if type(present) is DefaultFlowCallback]
            self.callbacks.insert(flows[0] + 1 if flows else 0, made)
        elif not is_default:
            self.callbacks[ours[0]] = made
        return None

    return add_callback


# What is printed: a few values of each log line, where reporters and the log history get all


def _prints_less(original: Method) -> Method:
    """Around `on_log` of a callback that prints what it is given."""

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        if (state.stateful_callbacks.get(NOTES) or {}).get("console") != ALL:
            logs = logs and {name: value for name, value in logs.items() if _is_printed(name, logs)}
        return original(self, args, state, control, logs=logs, **kwargs)

    return on_log


def _is_printed(name: str, logs: Mapping[str, Any]) -> bool:
    return not name.startswith(PREFIX) or name in PRINTED or (name in PRINTED_IF_ANY and bool(logs[name]))


def _adds_columns(original: Method) -> Method:
    """Around `on_log` and `on_evaluate` of the progress table in notebooks: the effective rate, and the factor."""

    def method(self: Any, args: Any, *given: Any, optimizer: Any = None, **kwargs: Any) -> Any:
        result = original(self, args, *given, optimizer=optimizer, **kwargs)
        emo, table = unwrap(optimizer), self.training_tracker
        wrote = "metrics" in kwargs or (args.eval_strategy == "no" and "loss" in (kwargs.get("logs") or {}))
        if emo is not None and table is not None and wrote and table.inner_table:
            rate = next(iter(emo.effective_lr.values()), None)  # Adafactor may have none
            shown = {} if rate is None else {"Effective LR": f"{rate:.4g}"}
            place = {table.inner_table[0][0]: table.inner_table[-1][0]}
            table.write_line({**place, **shown, "Factor": f"{emo.emotion.coefficient:.4g}"})
        return result

    return method
