"""Registers the emo optimizers when the Trainer is imported, and not before: transformers takes seconds to import.

`OptimizerNames` gets its new members as soon as it exists, since argument parsers take their choices from it; all
else follows when the Trainer is there. Used by `emo-hf run` and, in its children, by `sitecustomize`; standard library
only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

EMOTION = "EMO_HF_RUN_EMOTION"
"""Environment variable: the law that other optimizers are given an emotion of."""

EMOTION_ARGS = "EMO_HF_RUN_EMOTION_ARGS"
"""Environment variable: the options of that emotion, `key=value,key=value`."""


def pairs_of(text: str) -> dict[str, str]:
    """Options by their name.

    Raises:
        ValueError: for a part that is not `key=value`.
    """
    parts = [part.partition("=") for part in text.split(",")] if text else []
    if not all(key.strip() and value.strip() for key, _, value in parts):
        raise ValueError(f"takes key=value,key=value, got {text!r}")
    return {key.strip(): value.strip() for key, _, value in parts}


def _extend_names(module: ModuleType) -> None:
    from emo_hf.trainer.names import extend_names

    extend_names(module.OptimizerNames)


def _register(module: ModuleType) -> None:
    from emo_hf.trainer.registry import register

    emotion = os.environ.get(EMOTION)
    if not emotion:
        register()
        return
    register(emotion=emotion, **pairs_of(os.environ.get(EMOTION_ARGS, "")))


AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "transformers.training_args": _extend_names,
    "transformers.trainer": _register,
}


class Finder:
    """Stands before all others on `sys.meta_path`, and has modules of `AFTER_IMPORT` seen to once they are loaded.

    Args:
        strict: whether an error in that is the program's, or a line on stderr.
    """

    is_of_emo_hf = True  # this file is loaded under two names, below `emo-hf run` in a child of another one

    def __init__(self, strict: bool) -> None:
        self.strict = strict

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in AFTER_IMPORT:
            return None
        for finder in sys.meta_path:
            find = None if hasattr(finder, "is_of_emo_hf") else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                self.see_to(spec)
                return spec
        return None

    def see_to(self, spec: ModuleSpec) -> None:
        """Run what is to follow after the module of a spec."""
        load = getattr(spec.loader, "exec_module", None)
        if load is None:
            return

        def exec_module(module: ModuleType) -> None:
            load(module)
            self.after(module)

        spec.loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]

    def after(self, module: ModuleType) -> None:
        """Do what follows after a module."""
        try:
            AFTER_IMPORT[module.__name__](module)
        except Exception as error:  # whatever is wrong, a child without emo_hf goes on
            if self.strict:
                raise
            sys.stderr.write(f"emo-hf run: the emo optimizers are not known in process {os.getpid()}: {error!r}\n")


def install(strict: bool = False) -> None:
    """Have the names registered when the Trainer is imported, or now if it has been; twice changes nothing."""
    finder = Finder(strict)
    sys.meta_path[:] = [finder, *(other for other in sys.meta_path if not hasattr(other, "is_of_emo_hf"))]
    for name in AFTER_IMPORT:
        if name in sys.modules:
            finder.after(sys.modules[name])
