"""What laws that decide in words have decided over the runs of an arm."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from emo_hf.study.plan import Line

STARTED, EASING, COME_BACK, DONE = "started", "easing", "come back", "done"
COUNTED = ("raised", "lowered", "eased", COME_BACK, "skipped")


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What was decided in the runs of an arm on a task.

    Attributes:
        runs: how many.
        first: what was decided → the step at which it first was, as a median over the runs in which it was, and the
            number of those.
        counts: what was decided → how often a run, as a mean.
        steps: the budget of a run.
    """

    runs: int
    first: dict[str, tuple[float, int]]
    counts: dict[str, float]
    steps: int


def what(text: str) -> str:
    """What was decided, of a decision in words: all before the colon."""
    return text.partition(":")[0]


def decided(lines: Sequence[Line]) -> Decided | None:
    """The decisions of some runs of an arm on a task; None where nothing has been decided."""
    logs = [((line["emotion"] or {}).get("decisions") or []) for line in lines]
    if not any(logs):
        return None
    first = {}
    for kind in (STARTED, EASING, COME_BACK, DONE):
        known = [
            min(step, line["steps"])  # what the last evaluation has led to belongs to a step that was not taken
            for line, log in zip(lines, logs, strict=True)
            for step in [next((step for step, text in log if what(text) == kind), None)]
            if step is not None
        ]
        if known:
            first[kind] = statistics.median(known), len(known)
    counts = {kind: statistics.fmean(sum(what(text) == kind for _, text in log) for log in logs) for kind in COUNTED}
    return Decided(runs=len(lines), first=first, counts=counts, steps=lines[0]["planned_steps"])
