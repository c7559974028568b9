"""Finds what a study names as `module:name` or `path.py:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from emo_hf.cli_errors import UserError


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
