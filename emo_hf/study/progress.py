"""The bar that says how far a study is and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from emo_hf.study.estimate import in_words, outcome_in_words, seconds_left, seconds_per_run
from emo_hf.study.plan import Line, Run


class Progress:
    """One bar over all runs that are left.

    Args:
        runs: those that are planned now; stages that are planned later are counted by `later`.
        later: how many more will be planned.
        processes: runs at a time.
        lines: what is known of runs that are done, for the time that is left.
        shown: whether there is a bar at all.
    """

    def __init__(
        self, runs: Sequence[Run], later: Sequence[Run], processes: int, lines: Sequence[Line], *, shown: bool = True
    ) -> None:
        self._left = [*runs, *later]
        self._processes = processes
        self._known = list(lines)
        self._bar: Any = tqdm(
            total=len(self._left),
            bar_format="{n_fmt}/{total_fmt} runs |{bar:24}| {elapsed} so far{postfix}",
            disable=not shown,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self._last = ""
        self._ticked = 0.0

    def ended(self, run: Run, line: Line) -> None:
        """A run has come to its end."""
        self._left = [other for other in self._left if other.id != run.id or other.seed != run.seed]
        self._known.append(line)
        self._last = f"; last: {run.id} {outcome_in_words(line)}"
        if "error" in line:
            self._bar.write(f"failed: {run.id}: {line['error']}")
        self._bar.update()
        self.tick(at_once=True)

    def tick(self, *, at_once: bool = False) -> None:
        """Show the time that is left; often called, seldom shown."""
        if at_once or (sys.stderr.isatty() and time.monotonic() - self._ticked > 5.0):
            self._ticked = time.monotonic()
            left = seconds_left(self._left, seconds_per_run(self._known), self._processes)
            self._bar.set_postfix_str(f"time left: {in_words(left)}{self._last}")

    def replan(self, runs: Sequence[Run], later: Sequence[Run]) -> None:
        """The next stage is planned now, perhaps with fewer runs than it was thought to have."""
        self._left = [*runs, *later]
        self._bar.total = self._bar.n + len(self._left)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()
