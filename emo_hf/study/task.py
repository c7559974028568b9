"""What a task in Python is made of, for studies whose task is no `emo-hf train` job, and how a study finds it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emo_hf.cli_errors import UserError

TUNE, JUDGE = "tune", "judge"
HALVES = (TUNE, JUDGE)
"""The two halves of the held-out data: learning rates are chosen by the first, arms are compared on the second."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data and its loss.

    A study names a function, `module:name` or `path.py:name`. It is called with the seed (and with the task's further
    keys in the study as keywords) after every generator has been seeded, and returns a `Task`. The model must come
    out the same for the same seed, and so must the data.

    Attributes:
        model: what is trained.
        train_batches: seed → one pass over the training batches, in the order of that seed. It is called again, with
            another seed, when a pass is over. Batches are dicts, lists or tuples of tensors.
        loss: (model, batch) → the loss to go backward from, a tensor of one element.
        evaluate: (model, half) → numbers on one half of the held-out data, `tune` or `judge`; "loss" must be among
            them. The model is in evaluation mode and gradients are off.
        chance: the loss on the `judge` half of the best answer that does not look at its input, such as the entropy
            of the labels; a run that ends no better is lost. None: a run is lost that ends no better than it began.
        prepare: called with the Trainer before it trains, to add callbacks to it.
        outcome: called when training has ended; what it returns is kept with the run as `extra`.
    """

    model: nn.Module
    train_batches: Callable[[int], Iterable[Any]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    evaluate: Callable[[nn.Module, str], Mapping[str, float]]
    chance: float | None = None
    prepare: Callable[[Any], None] | None = None
    outcome: Callable[[], Mapping[str, Any]] | None = None


def named_in(where: str, place: str) -> Any:
    """What `module:name` or `path.py:name` names; a file may import what lies beside it, as a script may.

    Args:
        where: the key of the study, for messages.
        place: what stands there.

    Raises:
        UserError: if it cannot be found.
    """
    source, _, name = place.rpartition(":")
    try:
        module = _from_file(Path(source).expanduser()) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError:
        raise UserError(f"{where} must be in a file that exists, got {source!r}") from None
    except ImportError as error:
        raise UserError(f"{where} must be in a module that can be imported, got {source!r}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{where} must name a function or a class, got {name!r}, which {source!r} does not have")
    return found


def _from_file(path: Path) -> Any:
    """A file as a module, loaded once in a process."""
    full = path.resolve(strict=True)
    name = f"{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(full.parent) not in sys.path:
        sys.path.insert(0, str(full.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
