"""What is put around methods of transformers; where and why stands in `emo_hf/integrations/patches.py`.

`register()` and the first `EmoCallback` put it there; `unregister()` takes it away. Trainers without an emotion go
through it unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from emo_hf.integrations import patches
from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer import console

Method = Callable[..., Any]

IS_EMO_CALLBACK = "is_emo_callback"
"""The attribute by which an `EmoCallback` is known."""


def _methods() -> dict[str, Callable[[Method], Method]]:
    """Place → what makes the method that takes its place."""
    methods: dict[str, Callable[[Method], Method]] = {
        "transformers:Trainer.evaluation_loop": _with_average,
        "transformers:Trainer.save_model": _with_average,
        "transformers:Trainer._save_checkpoint": _saves,
        "transformers:Trainer._evaluate": _evaluates,
        "transformers:Trainer._load_optimizer_and_scheduler": _loads,
        "transformers.trainer_callback:CallbackHandler.add_callback": _adds_callback,
        "transformers.trainer_callback:ProgressCallback.on_log": console.prints_less,
        "transformers.trainer_callback:PrinterCallback.on_log": console.prints_less,
    }
    if "transformers.utils.notebook" in sys.modules:  # it needs IPython
        notebook = "transformers.utils.notebook:NotebookProgressCallback."
        methods |= {notebook + name: console.adds_columns for name in ("on_log", "on_evaluate")}
    return methods


def install() -> None:
    """Put them there; doing it twice changes nothing."""
    for place, around in _methods().items():
        patches.put(place, around)


def uninstall() -> None:
    """Take them away."""
    for place in _methods():
        patches.take_back(place)


def _average_shown(trainer: Any) -> AbstractContextManager[None]:
    emo = unwrap(getattr(trainer, "optimizer", None))
    return nullcontext() if emo is None else emo.average_shown()


def _listeners(trainer: Any, method: str) -> list[Any]:
    return [callback for callback in trainer.callback_handler.callbacks if hasattr(callback, method)]


def _with_average(original: Method) -> Method:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _average_shown(self):
            return original(self, *args, **kwargs)

    return method


def _saves(original: Method) -> Method:
    def _save_checkpoint(self: Any, model: Any, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        with _average_shown(self):
            for callback in _listeners(self, "before_save"):
                callback.before_save(self.args, self.state, self.optimizer, self._get_output_dir(trial))
            return original(self, model, trial, *args, **kwargs)

    return _save_checkpoint


def _evaluates(original: Method) -> Method:
    def _evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = original(self, *args, **kwargs)
        for callback in _listeners(self, "after_evaluation"):
            callback.after_evaluation(self.args, self.state, self.control, self.optimizer, metrics)
        return metrics

    return _evaluate


def _loads(original: Method) -> Method:
    def _load_optimizer_and_scheduler(self: Any, checkpoint: Any) -> Any:
        given = [dict(group) for group in self.optimizer.param_groups] if checkpoint else []
        result = original(self, checkpoint)
        for callback in _listeners(self, "after_loading") if checkpoint else ():
            callback.after_loading(given, self.optimizer)
        return result

    return _load_optimizer_and_scheduler


def _adds_callback(original: Method) -> Method:
    def add_callback(self: Any, callback: Any) -> Any:
        from transformers.trainer_callback import DefaultFlowCallback

        is_default = isinstance(callback, type)
        if not getattr(callback, IS_EMO_CALLBACK, False):
            return original(self, callback)
        made = callback() if is_default else callback
        ours = [i for i, present in enumerate(self.callbacks) if getattr(present, IS_EMO_CALLBACK, False)]
        if not ours:
            flows = [i for i, present in enumerate(self.callbacks) if type(present) is DefaultFlowCallback]
            self.callbacks.insert(flows[0] + 1 if flows else 0, made)
        elif not is_default:
            self.callbacks[ours[0]] = made
        return None

    return add_callback
