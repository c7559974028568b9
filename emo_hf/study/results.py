"""The runs that are done, one JSON line each; what a kill has left half-written is cut off."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from emo_hf.study.errors import StudyError
from emo_hf.study.plan import Line, Run

RUNS_FILE = "runs.jsonl"


class Results:
    """The lines of a study's folder.

    Args:
        folder: where `runs.jsonl` lies or will lie.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RUNS_FILE
        self.lines: dict[str, Line] = {}
        """id → the last line of that id."""
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        for number, text in enumerate(self.path.read_bytes().split(b"\n"), 1):
            try:
                line = json.loads(text) if text.strip() else None
            except ValueError:
                line = None  # written in part when the power went
            if isinstance(line, dict):
                if "id" not in line:
                    raise StudyError(f"{self.path}, line {number}: not a run of emo-hf compare, it has no id")
                self.lines[line["id"]] = line

    def append(self, line: Line) -> None:
        """Add a line, whole or not at all."""
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            if size and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data  # what a kill has left stays a line of its own
            os.write(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        self.lines[str(line["id"])] = line

    def done(self, run: Run) -> Line | None:
        """The line of a run as it is planned now; None if it has to be run."""
        line = self.lines.get(run.id)
        return line if run.is_done_by(line) else None


class OneAtATime:
    """Keeps a folder for one `emo-hf compare` at a time, for as long as this process lives."""

    def __init__(self, folder: Path) -> None:
        self._file: Any = open(folder / ".lock", "w")  # noqa: SIM115  held until the process ends
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on this system
            pass
        except OSError:
            raise StudyError(f"output_dir {str(folder)!r} is in use by another emo-hf compare") from None

    def release(self) -> None:
        self._file.close()
