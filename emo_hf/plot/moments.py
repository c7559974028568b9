"""Marks what a law has decided on the curve of the loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emo_hf.plot.colors import BLACK, BLUE, DARK, GREEN, ORANGE, PURPLE, VERMILLION
from emo_hf.plot.decisions import DONE, Moment, spikes, turns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

MOST_ROWS = 6
"""Rows of labels above the panel; what would need more is a dot without a label."""

MARKS = {
    "started": (">", GREEN),
    "raised": ("P", ORANGE),
    "lowered": ("X", ORANGE),
    "easing": ("v", BLUE),
    "eased": ("v", BLUE),
    "come back": ("^", PURPLE),
    DONE: ("s", VERMILLION),
}
"""Kind of a decision → shape and colour of its mark; what is not in here is a dark dot."""
OTHER = ("o", DARK)

_SIZE = 8.5
_FREE = 10  # pixels between two labels

Curve = tuple[Sequence[float], Sequence[float]]


def mark_spikes(panel: Axes, found: Sequence[Moment]) -> None:
    """Ticks at the foot of a panel for the steps that were left out."""
    left_out = spikes(found)
    if left_out:
        panel.plot(
            left_out, [0.02] * len(left_out),
            transform=panel.get_xaxis_transform(), linestyle="", marker="|", markersize=7, color=BLACK,
            label=f"{len(left_out)} spike{'s' if len(left_out) > 1 else ''} left out (braked)",
        )  # fmt: skip


def mark_moments(panel: Axes, found: Sequence[Moment], curve: Curve) -> None:
    """Flags above a panel whose poles stand on a curve.

    Args:
        panel: the finished panel; flags need to know its limits.
        found: the moments.
        curve: steps and values.
    """
    flags = []
    for step, same in itertools.groupby(turns(found), key=lambda moment: moment.step):
        at_once = list(same)
        shape, color = MARKS.get(at_once[-1].kind, OTHER)
        height = value_at(curve, step)
        if height is None:
            continue
        panel.plot([step], [height], marker=shape, markersize=6.5, color=color, markeredgecolor="white", zorder=5)
        flags.append(_flag(panel, ", ".join(moment.label for moment in at_once), step, height, color))
    _raise_flags(panel, flags)


def mark_shapes(panel: Axes, found: Sequence[Moment], curve: Curve, color: Any) -> set[str]:
    """Shapes on a curve among others, in its colour, without words; what kinds of decision there were."""
    kinds = set()
    for moment in turns(found):
        height = value_at(curve, moment.step)
        if height is not None and moment.kind in MARKS:
            kinds.add(moment.kind)
            panel.plot(
                [moment.step], [height],
                marker=MARKS[moment.kind][0], markersize=7, color=color, markerfacecolor="white", zorder=5,
            )  # fmt: skip
    return kinds


def _flag(panel: Axes, text: str, step: int, height: float, color: str) -> Annotation:
    return panel.annotate(
        text,
        xy=(step, height),
        xytext=(step, 1.0),
        textcoords=panel.get_xaxis_transform(),
        annotation_clip=False,
        fontsize=_SIZE,
        color=DARK,
        ha="left",
        va="bottom",
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 1.0, "alpha": 0.8, "shrinkA": 0, "shrinkB": 3,
                    "relpos": (0.0, 0.0)},
    )  # fmt: skip


def _raise_flags(panel: Axes, flags: Sequence[Annotation]) -> None:
    """Each so high that it lies over all that it would cover, whose poles then do not cross it either."""
    made = panel.get_figure(root=True)
    if made is None or not flags:
        return
    made.draw_without_rendering()  # the widths of texts and panel are known from here on
    row_height = 1.25 * max(_extent(flag).height for flag in flags) / panel.get_window_extent().height
    placed: list[tuple[float, float, int]] = []  # from, to, row; from right to left
    for flag in reversed(flags):
        start = panel.transData.transform((flag.xy[0], 0.0))[0]
        end = start + _extent(flag).width + _FREE
        row = max((row + 1 for other, _, row in placed if other < end), default=0)
        if row >= MOST_ROWS:
            flag.remove()
            continue
        placed.append((start, end, row))
        flag.set_position((flag.xy[0], 1.03 + row_height * row))


def _extent(flag: Annotation) -> Bbox:
    from matplotlib.text import Text

    return Text.get_window_extent(flag)  # without its pole


def value_at(curve: Curve, step: float) -> float | None:
    """The curve's value at a step, on the line between its neighbours; None where there is no curve."""
    points = [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)]
    if not points:
        return None
    before = max((point for point in points if point[0] <= step), default=points[0])
    after = min((point for point in points if point[0] >= step), default=points[-1])
    if after[0] == before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (step - before[0]) / (after[0] - before[0])
