"""Registers the emo optimizers when the Trainer is imported, in `emo-hf run` and in every Python that it starts.

Launchers (`trl sft`, LLaMA-Factory, torchrun below a script) train in child processes, where a registration of their
parent is lost. Python imports a module of this name when it starts, from the folder that `reach_children` puts first
on their PYTHONPATH. Transformers takes seconds to import, so nothing is done before a child imports it itself. The
standard library is all that is needed here: a child may be a Python that has neither emo_hf nor torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

SWITCH = "EMO_HF_RUN"
"""Environment variable: what `register()` is called with, as JSON. Without it nothing is done."""

FOLDER = os.path.dirname(os.path.abspath(__file__))


def reach_children(arguments: Mapping[str, Any]) -> None:
    """Have `register(**arguments)` called in every Python that is started from here on, directly or not."""
    os.environ[SWITCH] = json.dumps(dict(arguments))
    present = os.environ.get("PYTHONPATH")
    paths = present.split(os.pathsep) if present else []  # an empty one among several is the working folder
    os.environ["PYTHONPATH"] = os.pathsep.join([FOLDER, *(path for path in paths if path != FOLDER)])


def install(strict: bool = False) -> None:
    """Have the names registered when the Trainer is imported, or now if it has been; twice changes nothing.

    Args:
        strict: whether an error in that is the program's, or a line on stderr: a child without emo_hf goes on.
    """
    finder = Finder(strict)
    sys.meta_path.insert(0, finder)
    for name in AFTER_IMPORT:
        if name in sys.modules:
            finder.after(sys.modules[name])


def _extend_names(module: ModuleType) -> None:
    """At once, since argument parsers take their choices from this enumeration."""
    from emo_hf.trainer.factory import extend_names

    extend_names(module.OptimizerNames)


def _register(module: ModuleType) -> None:
    from emo_hf.trainer.registry import register

    register(**json.loads(os.environ[SWITCH]))


AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "transformers.training_args": _extend_names,
    "transformers.trainer": _register,
}


class Finder:
    """Finds the modules of `AFTER_IMPORT` as Python does, and has them seen to once they are loaded."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in AFTER_IMPORT else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_see_to(module: ModuleType) -> None:
                load(module)
                self.after(module)

            spec.loader.exec_module = load_and_see_to  # type: ignore[method-assign]
        return spec

    def after(self, module: ModuleType) -> None:
        """Do what follows after a module."""
        try:
            AFTER_IMPORT[module.__name__](module)
        except Exception as error:
            if self.strict:
                raise
            sys.stderr.write(f"emo-hf run: the emo optimizers are not known in process {os.getpid()}: {error!r}\n")


def _give_way() -> None:
    """Run the sitecustomize that Python would have found without this one, on the path that it would have had."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != FOLDER]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = sys.modules["sitecustomize"] = module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":  # and not emo_hf.startup.sitecustomize
    if os.environ.get(SWITCH):
        install()
    _give_way()
