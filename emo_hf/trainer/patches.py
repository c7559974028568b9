"""What is put around methods of transformers: the list, and the way back.

`register()` and the first `EmoCallback` put it there; `unregister()` takes it away. Trainers without an emotion go
through it unchanged.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer import console

logger = logging.getLogger(__name__)

Method = Callable[..., Any]
Patch = tuple[type, str, Callable[[Method], Method]]
"""A class, the name of a method, and what makes the method that takes its place."""

MARK = "_emo_hf_original"
"""Under which name our methods keep those that they stand for."""


def patches() -> list[Patch]:
    """All of them. What this version of transformers does not have is left out, and `install` says so.

    | method | what is added |
    |---|---|
    | `Trainer.evaluation_loop`, `prediction_loop`, `save_model` | the parameters hold the average of the weights |
    | `Trainer._save_checkpoint` | the same, so that the optimizer's state belongs to the model beside it; and notes |
    | `Trainer._evaluate` | an evaluation in training, all of its sets, is heard |
    | `Trainer._load_optimizer_and_scheduler` | options that a checkpoint overrides are named |
    | `CallbackHandler.add_callback` | an `EmoCallback` comes before reporters, in the place of the registered one |
    | `on_log` of `ProgressCallback`, `PrinterCallback` | prints a few values of an emotion, not all |
    | `on_log`, `on_evaluate` of `NotebookProgressCallback` | two columns more |
    """
    from transformers import Trainer
    from transformers.trainer_callback import CallbackHandler, PrinterCallback, ProgressCallback

    found: list[Patch] = [
        (Trainer, "evaluation_loop", _with_average),
        (Trainer, "prediction_loop", _with_average),
        (Trainer, "save_model", _with_average),
        (Trainer, "_save_checkpoint", _saves),
        (Trainer, "_evaluate", _evaluates),
        (Trainer, "_load_optimizer_and_scheduler", _loads),
        (CallbackHandler, "add_callback", _adds_callback),
        (ProgressCallback, "on_log", console.prints_less),
        (PrinterCallback, "on_log", console.prints_less),
    ]
    notebook = sys.modules.get("transformers.utils.notebook")  # needs IPython
    if notebook is not None:
        found += [
            (notebook.NotebookProgressCallback, name, console.adds_columns) for name in ("on_log", "on_evaluate")
        ]
    missing = tuple(f"{owner.__name__}.{name}" for owner, name, _ in found if not hasattr(owner, name))
    _warn_of_missing(tuple(name for name in missing if name != "Trainer.prediction_loop"))  # gone in transformers 5
    return [patch for patch in found if hasattr(patch[0], patch[1])]


@functools.cache
def _warn_of_missing(names: tuple[str, ...]) -> None:
    if names:
        logger.warning(
            "This version of transformers has no %s: what emo_hf.trainer.patches adds there is missing.",
            ", ".join(names),
        )


def install() -> None:
    """Put them there; doing it twice changes nothing, and those of a former copy of this module are replaced."""
    for owner, name, around in patches():
        present = getattr(owner, name)
        if any(_is_ours(method, around) for method in _below(present)):
            continue
        while _is_ours(present):
            present = present.__wrapped__
        made = around(present)
        setattr(made, MARK, (present, around))
        setattr(owner, name, made)


def uninstall() -> None:
    """Take them away. Where somebody has put a method of their own over ours, both stay."""
    for owner, name, _ in patches():
        while _is_ours(getattr(owner, name)):
            setattr(owner, name, getattr(owner, name).__wrapped__)


def _below(method: Any) -> Iterator[Any]:
    """A method and those that it stands for."""
    while method is not None:
        yield method
        method = getattr(method, "__wrapped__", None)


def _is_ours(method: Any, around: Any = None) -> bool:
    """Whether it is one of ours, also of a former copy of this module; with `around`, whether that has made it."""
    mark = getattr(method, MARK, None)  # wrappers of others may have copied it
    return mark is not None and mark[0] is getattr(method, "__wrapped__", None) and around in (None, mark[1])


def _average_shown(trainer: Any) -> AbstractContextManager[None]:
    emo = unwrap(getattr(trainer, "optimizer", None))
    return nullcontext() if emo is None else emo.average_shown()


def _listeners(trainer: Any, method: str) -> list[Any]:
    return [callback for callback in trainer.callback_handler.callbacks if hasattr(callback, method)]


def _with_average(original: Method) -> Method:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _average_shown(self):
            return original(self, *args, **kwargs)

    return method


def _saves(original: Method) -> Method:
    @functools.wraps(original)
    def _save_checkpoint(self: Any, model: Any, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        with _average_shown(self):
            for callback in _listeners(self, "before_save"):
                callback.before_save(self.args, self.state, self.optimizer, self._get_output_dir(trial))
            return original(self, model, trial, *args, **kwargs)

    return _save_checkpoint


def _evaluates(original: Method) -> Method:
    @functools.wraps(original)
    def _evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = original(self, *args, **kwargs)
        for callback in _listeners(self, "after_evaluation"):
            callback.after_evaluation(self.args, self.state, self.control, self.optimizer, metrics)
        return metrics

    return _evaluate


def _loads(original: Method) -> Method:
    @functools.wraps(original)
    def _load_optimizer_and_scheduler(self: Any, checkpoint: Any) -> Any:
        given = [dict(group) for group in self.optimizer.param_groups] if checkpoint else []
        result = original(self, checkpoint)
        for callback in _listeners(self, "after_loading") if checkpoint else ():
            callback.after_loading(given, self.optimizer)
        return result

    return _load_optimizer_and_scheduler


def _adds_callback(original: Method) -> Method:
    @functools.wraps(original)
    def add_callback(self: Any, callback: Any) -> Any:
        from transformers.trainer_callback import DefaultFlowCallback

        from emo_hf.trainer.callbacks import EmoCallback

        is_default = isinstance(callback, type)
        if not issubclass(callback if is_default else type(callback), EmoCallback):
            return original(self, callback)
        made = callback() if is_default else callback
        kinds = [EmoCallback if isinstance(present, EmoCallback) else type(present) for present in self.callbacks]
        if EmoCallback in kinds:
            if not is_default:
                self.callbacks[kinds.index(EmoCallback)] = made
        else:
            self.callbacks.insert(kinds.index(DefaultFlowCallback) + 1 if DefaultFlowCallback in kinds else 0, made)
        return None

    return add_callback
