"""The figure of a study: differences to the reference, and for each task the loss against rates and against steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from emo_hf.study.analysis import Analysis
from emo_hf.study.plan import curve_of, rate_of
from emo_hf.study.schema import Judged, TaskSpec
from emo_hf.study.task import JUDGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#111111", "#1f5fa8", "#e07b1a", "#2a8f5b", "#c23b3b", "#7a4fb5", "#0f9aa8", "#b5497f", "#8c6d1f", "#5aa9e6")
DASHES = ("-", "--", ":", "-.")
GREY = "#8a8f98"
DPI = 80
COLUMNS = 4


def draw(analysis: Analysis, file: Path) -> None:
    """Draw the figure of a study into a PNG file."""
    judged = [analysis.reference, *(each for each in analysis.judged.values() if each is not analysis.reference)]
    tasks = [task for task in analysis.tuned_tasks if any(analysis.losses(task, each) for each in judged)]
    rows = 2 * max(1, math.ceil(len(tasks) / COLUMNS))
    columns = min(COLUMNS, max(len(tasks), 2))
    top = 0.32 * len(judged) + 0.9
    figure = Figure(figsize=(4 * columns, top + 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[top, 2.6 * rows])
    _differences(parts[0].subplots(), analysis, judged)
    panels = parts[1].subplots(rows, columns, squeeze=False)
    for number, task in enumerate(tasks):
        row, column = 2 * (number // columns), number % columns
        _against_rates(panels[row][column], analysis, judged, task)
        _against_steps(panels[row + 1][column], analysis, judged, task)
    for panel in panels.flat:
        if not panel.has_data():
            panel.remove()
        else:
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8)
    figure.savefig(file, dpi=DPI, pil_kwargs={"optimize": True})


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number // len(COLORS) % len(DASHES)]}


def words(name: str) -> str:
    """A name as matplotlib shows it: a dollar begins no formula."""
    return name.replace("$", r"\$")


def _differences(panel: Axes, analysis: Analysis, judged: Sequence[Judged]) -> None:
    """The mean over tasks with its interval, and every task as a dot; the colours are those of the panels below."""
    edge = ScaledTranslation(0, 0, panel.transAxes)  # type: ignore[arg-type]  # any transform will do
    beside = blended_transform_factory(panel.figure.dpi_scale_trans + edge, panel.transData)  # inches from the left
    for number, each in enumerate(judged):
        style, y = _style(number), -number
        panel.axhline(y, color="#eeeeee", linewidth=0.8, zorder=0)
        panel.plot([-0.42, -0.08], [y, y], transform=beside, clip_on=False, linewidth=2, **style)
        found = analysis.difference(each, analysis.reference)[0]
        if found is None or each is analysis.reference:
            continue
        if math.isfinite(found.low):
            panel.plot([100 * found.low, 100 * found.high], [y, y], color=style["color"], linewidth=2)
        panel.plot([100 * found.mean], [y], "o", color=style["color"], markersize=6)
        for task in analysis.tuned_tasks:
            result = analysis.results(task).get(each.name)
            if result is not None and result.difference is not None:
                panel.plot([100 * result.difference.mean], [y], "|", color=GREY, markersize=9)
    panel.axvline(0.0, color=GREY, linewidth=0.8)
    panel.set_xscale("symlog", linthresh=10)
    panel.set_xticks([-100, -30, -10, -5, 0, 5, 10, 30, 100, 300], labels=None, minor=False)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    low, high = (100 * edge for edge in _range(analysis, judged))
    panel.set_xlim(1.15 * min(low, -5), 1.15 * max(high, 5))
    panel.set_yticks([-i for i in range(len(judged))], [words(each.name) for each in judged], fontsize=9)
    panel.tick_params(axis="y", length=0, pad=34)
    panel.set_xlabel(f"difference to {words(analysis.reference.name)} in % of its loss; left is better", fontsize=9)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _range(analysis: Analysis, judged: Sequence[Judged]) -> tuple[float, float]:
    """From the lowest to the highest mean or end of an interval, and what a task has; at most 300 %."""
    found = [analysis.difference(each, analysis.reference)[0] for each in judged if each is not analysis.reference]
    ends = [end for each in found if each for end in (each.mean, each.low, each.high) if math.isfinite(end)]
    return max(min(ends, default=0.0), -1.0), min(max(ends, default=0.0), 3.0)


def _against_rates(panel: Axes, analysis: Analysis, judged: Sequence[Judged], task: TaskSpec) -> None:
    drawn = {}
    for number, each in enumerate(judged):
        if not each.arm.learning_rates:  # rates of another kind
            losses = {q: loss for q, loss in analysis.losses(task, each).items() if math.isfinite(loss)}
            if losses:
                drawn[number] = losses
                panel.plot(
                    [rate_of(q) for q in losses], [*losses.values()], marker=".", linewidth=1.2, **_style(number)
                )
    panel.set_title(words(task.name), fontsize=10)
    panel.set_xscale("log")
    panel.set_xlabel("learning rate", fontsize=8)
    _limit(panel, [[*losses.values()] for losses in drawn.values()])


def _against_steps(panel: Axes, analysis: Analysis, judged: Sequence[Judged], task: TaskSpec) -> None:
    curves = []
    for number, each in enumerate(judged):
        lines = [curve_of(line, each, JUDGE) for line in analysis.plan.reported(task, each)]
        length = min(map(len, lines), default=0)
        points = [[curve[i][1] for curve in lines if curve[i][1] is not None] for i in range(length)]
        if length and all(points):
            means = [statistics.fmean(point) for point in points]
            panel.plot([lines[0][i][0] for i in range(length)], means, linewidth=1.2, **_style(number))
            curves.append(means[1:])
    panel.set_xlabel("step", fontsize=8)
    _limit(panel, curves)


def _limit(panel: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Cut off what is far above: the lowest losses are what is compared."""
    values = [value for curve in curves for value in curve]
    if values:
        low = min(values)
        above = sorted(min(curve) for curve in curves)[len(curves) // 2]
        high = low + max(4 * (above - low), 0.5 * abs(low), 1e-9)
        span = min(high, max(values)) - low
        if span > 0:
            panel.set_ylim(low - 0.06 * span, low + 1.06 * span)
