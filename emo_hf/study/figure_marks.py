"""Marks on the curves of a report: what laws that decide in words have decided, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emo_hf.study.decisions import COME_BACK, DONE, EASING, STARTED, decided
from emo_hf.study.plan import Line
from emo_hf.study.statistics import loss_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPES = {STARTED: ">", EASING: "v", COME_BACK: "^", DONE: "s"}
GREY = "#55595f"


def mark_decisions(
    panel: Axes, lines: Sequence[Line], steps: Sequence[int], mean: Sequence[float], color: str, top: float
) -> dict[str, Any]:
    """Mark on an arm's mean curve where its runs first decided something, in the median of those that did.

    What fewer than half of the runs have decided is left out, and so is what lies above the panel.

    Args:
        panel: where the curve is.
        lines: the arm's runs.
        steps, mean: the curve.
        color: the curve's.
        top: where the panel ends.

    Returns:
        For the legend: what was decided → a mark.
    """
    found = decided(lines)
    marks: dict[str, Any] = {}
    for kind, (step, runs) in (found.first if found else {}).items():
        loss = loss_at(list(zip(steps, mean, strict=True)), step)
        if 2 * runs >= len(lines) and step <= steps[-1] and loss <= top:
            shape: dict[str, Any] = {
                "marker": SHAPES[kind],
                "linestyle": "none",
                "markersize": 6.5,
                "markeredgewidth": 1.2,
            }
            panel.plot([step], [loss], color=color, markerfacecolor="white", zorder=6, **shape)
            (marks[f"{kind}{' first' * (kind in (EASING, COME_BACK))}"],) = panel.plot(
                [], [], color=GREY, markerfacecolor="white", **shape
            )
    return marks
