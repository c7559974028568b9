"""The runs that are done, one JSON line each, in a folder that several processes may share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

from emo_hf.cli_errors import UserError
from emo_hf.study.plan import Line

RUNS_FILE = "runs.jsonl"


class Results:
    """The lines of the folder in which `runs.jsonl` lies or will lie."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RUNS_FILE
        self.lines: dict[str, Line] = {}
        """key → the last line of that key."""
        self._read_to = 0
        self.read()

    def read(self) -> dict[str, Line]:
        """Take up what has been added since; a line counts when it is whole, its end of line included."""
        if not self.path.exists():
            return self.lines
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for text in whole.split(b"\n"):
            try:
                line = json.loads(text) if text.strip() else None
            except ValueError:
                continue  # what a kill or a full disk has left of a line
            if isinstance(line, dict):
                if "key" not in line:
                    raise UserError(f"{self.path} holds a line that is no run of emo-hf compare: it has no key")
                self.lines[line["key"]] = line
        self._read_to += len(whole)
        return self.lines

    def append(self, line: Line) -> None:
        """Add a line; of one that does not fit on the disk, what is there is no line.

        Raises:
            UserError: if it could not be written in full: then the run is not done.
        """
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("a+b") as file:
                lock(file, wait=True)  # it goes when the file is closed
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":
                        data = b"\n" + data  # what a kill has left stays a line of its own
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path} could not be written, so the run is not done: {error}") from error
        self.lines[str(line["key"])] = line


def claim(folder: Path, key: str) -> Any:
    """Reserve a run for this process, for as long as the returned file is open; None if another process has it.

    The lock goes with the process, however it ends.
    """
    place = folder / "claims"
    place.mkdir(parents=True, exist_ok=True)
    file = (place / key).open("w")
    if lock(file, wait=False):
        return file
    file.close()
    return None


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Have a file for this process alone; whether it has it."""
    try:
        import fcntl
    except ImportError:  # not on this system: then one process is all there may be
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
