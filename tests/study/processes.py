"""The processes that a command has started, found by a mark in their environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def processes_marked(mark: str) -> list[int]:
    """The processes of this machine that were started with a mark in their environment."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _is_marked(folder, mark)]


def _is_marked(folder: Path, mark: str) -> bool:
    try:
        return mark.encode() in (folder / "environ").read_bytes() and bool((folder / "cmdline").read_bytes())
    except OSError:  # it has ended in the meantime, or is another user's
        return False


def end(mark: str) -> None:
    """End what a test has left, by its process id."""
    for pid in processes_marked(mark):
        os.kill(pid, signal.SIGKILL)
