"""Draws again whenever a run has written something new, until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from emo_hf.plot.errors import PlotError
from emo_hf.plot.run import Run, files_of, read_run

EVERY = 2.0  # seconds

Signature = tuple[tuple[str, int, int], ...]


def signature(places: Sequence[Path]) -> Signature:
    """Another one whenever a file of a run has changed."""
    found = []
    for place in places:
        for file in files_of(place):
            try:
                status = file.stat()
            except FileNotFoundError:  # a checkpoint that the run has just deleted
                continue
            found.append((str(file), status.st_mtime_ns, status.st_size))
    return tuple(found)


def follow(
    places: Sequence[Path],
    draw: Callable[[Sequence[Run], bool], None],
    *,
    every: float = EVERY,
    say: Callable[[str], None] = lambda said: None,
) -> None:
    """Draw at once and after each change, until all runs have ended.

    What cannot be read or drawn yet, since nothing is logged or a file is being written, is waited for.

    Args:
        places: the runs, as `read_run` takes them; they must be there.
        draw: is given the runs, and whether they are still going.
        every: seconds between two looks.
        say: is told what is waited for.

    Raises:
        PlotError: if a place is missing.
    """
    for place in places:
        if not place.exists():
            raise PlotError(f"there is no file or folder {str(place)!r}")
    seen: Signature | None = None
    waiting = ""
    while True:
        now = signature(places)
        if now != seen:
            try:
                runs = [read_run(place) for place in places]
                going = not all(run.has_ended for run in runs)
                draw(runs, going)
            except PlotError as error:
                if str(error) != waiting:
                    say(f"waiting: {error}")
                    waiting = str(error)
            else:
                seen, waiting = now, ""
                if not going:
                    return
        time.sleep(every)
