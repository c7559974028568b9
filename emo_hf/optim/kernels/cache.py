"""The folder in which compiled kernels are kept, and whether what lies in it may be loaded.

What is loaded runs with the rights of this user. So it has to belong to this user, as its folder has; nobody else may
write to either; and its content has to be what was compiled: its name holds a fingerprint of what it was made from,
and a digest of what came out.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from pathlib import Path

CACHE_VARIABLE = "EMO_HF_CACHE"

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$EMO_HF_CACHE`, or `emo_hf` in the user's cache folder; readable by the user alone when it is made here.

    Raises:
        OSError: if there is none and it cannot be made.
    """
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path(parent) / "emo_hf")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def objection(path: Path) -> str | None:
    """Why nothing may be loaded from a file or folder, or None if it is this user's alone."""
    if not hasattr(os, "geteuid"):  # Windows has neither these owners nor these modes
        return None
    status = path.stat()
    if status.st_uid != os.geteuid():
        return f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}, who runs this"
    if status.st_mode & WRITABLE_BY_OTHERS:
        return f"{path} may be changed by others (mode {stat.S_IMODE(status.st_mode):o}): chmod go-w would prevent it"
    return None


def library_name(fingerprint: str, library: bytes) -> str:
    """The file name of a library that was made from what has this fingerprint."""
    return f"kernels-{fingerprint}-{hashlib.sha256(library).hexdigest()}.so"


def find_library(folder: Path, fingerprint: str) -> Path | None:
    """A library with this fingerprint in a folder of this user, if there is one that may be loaded.

    One that may not is removed, and a line of log says why.
    """
    for path in sorted(folder.glob(f"kernels-{fingerprint}-*.so")):
        why_not = objection_to_library(path, fingerprint)
        if why_not is None:
            return path
        logger.warning("%s: it is not loaded, and the kernels are compiled anew", why_not)
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def objection_to_library(path: Path, fingerprint: str) -> str | None:
    """Why a file may not be loaded, or None if it is this user's alone and holds what was compiled."""
    try:
        if path.is_symlink() or not path.is_file():
            return f"{path} is not a file of its own"
        if path.name != library_name(fingerprint, path.read_bytes()):
            return f"{path} does not hold what was compiled into it"
        return objection(path)
    except OSError as error:
        return f"{path} cannot be read ({error})"
