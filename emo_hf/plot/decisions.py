"""What a law has decided in the course of a run, in words and as marks on a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import PREFIX
from emo_hf.laws.words import DONE, SKIPPED, text_of
from emo_hf.plot.panels import Mark, Panel
from emo_hf.plot.run import Run, Series


def stop_of(run: Run) -> int | None:
    """The first step at which the stop signal is known to have stood."""
    done = [note.step for note in run.decisions if note.kind == DONE]
    logged = [step for step, stands in zip(*run.series(PREFIX + "should_stop"), strict=True) if stands]
    return min([*done, *logged], default=None)


def mark(panel: Panel, decisions: Sequence[Note], series: Series, color: str, name: str = "") -> None:
    """Mark what was decided, but for steps that were left out, on a curve of a panel.

    Args:
        panel: that the curve is in.
        decisions: of the run.
        series: the curve.
        color: of the marks.
        name: of the run, where there are several.
    """
    for note in decisions:
        value = value_at(series, note.step)
        if note.kind != SKIPPED and value is not None:
            words = f"{name}{', ' if name else ''}step {note.step:,}: {text_of(note)}"
            panel.marks.append(
                Mark(number=len(panel.marks) + 1, step=note.step, value=value, color=color, words=words)
            )


def value_at(series: Series, step: float) -> float | None:
    """The curve's value at a step, on the line between its neighbours; None where there is no curve."""
    points = [(x, y) for x, y in zip(*series, strict=True) if math.isfinite(y)]
    if not points:
        return None
    before = max((point for point in points if point[0] <= step), default=points[0])
    after = min((point for point in points if point[0] >= step), default=points[-1])
    share = (step - before[0]) / (after[0] - before[0]) if after[0] != before[0] else 0.0
    return before[1] + (after[1] - before[1]) * share
