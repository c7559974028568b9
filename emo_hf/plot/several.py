"""The picture of several runs: losses, effective rates, σ and factors, a colour and dashes for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emo_hf.laws.metrics import PREFIX
from emo_hf.plot.colors import DARK, style
from emo_hf.plot.decisions import moments
from emo_hf.plot.errors import PlotError
from emo_hf.plot.figure import is_training, new_figure
from emo_hf.plot.labels import label_curves, settle_labels
from emo_hf.plot.moments import MARKS, mark_shapes
from emo_hf.plot.panels import first_stop, series
from emo_hf.plot.run import Line, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING = 0.7
"""Weight of what was before, from log line to log line, in the curves of the training loss."""

MOST_LABELS = 10  # that the lowest panel has room for

EVALUATION, RATE, SCALAR, FACTOR = "evaluation loss", "learning rate", "scalar σ", "coefficient c"

Curve = tuple[list[int], list[float]]


def figure_of_several(runs: Sequence[Run], title: str) -> Figure:
    """One panel for each quantity, in which every run that has logged it has a curve.

    Args:
        runs: the runs; their names are what tells their curves apart in words.
        title: what stands above.

    Raises:
        PlotError: if a run has logged nothing, or matplotlib is not installed.
    """
    lines = [[line for line in run.history if is_training(line)] for run in runs]
    silent = [run.name for run, found in zip(runs, lines, strict=True) if not found]
    if silent:
        raise PlotError(f"no training loss was logged in {', '.join(silent)}: nothing to draw")
    rows: list[tuple[str, float, list[Curve]]] = [
        ("training loss\n(smoothed)", 3.0, [_smooth_loss(found) for found in lines]),
        (EVALUATION, 2.4, [series(run.history, "eval_loss") for run in runs]),
        (RATE, 2.2, [_rates(found) for found in lines]),
        (SCALAR, 1.8, [series(found, PREFIX + "scalar") for found in lines]),
        (FACTOR, 1.8, [series(found, PREFIX + "coefficient_mean") for found in lines]),
    ]
    rows = [row for row in rows if any(steps for steps, _ in row[2])]
    stretch = max(1.0, len(runs) / MOST_LABELS)
    made = new_figure([stretch * height for _, height, _ in rows], title)
    for panel, (what, _, curves) in zip(made.axes, rows, strict=True):
        _draw(panel, what, [run.name for run in runs], curves)
    _shadow(made.axes[0], lines)
    kinds: set[str] = set()
    fired = [first_stop(found) for found in lines]
    for i, (run, found) in enumerate(zip(runs, lines, strict=True)):
        decided = moments(run.decisions, found[-1]["step"])
        kinds |= mark_shapes(made.axes[0], decided, rows[0][2][i], style(i)["color"])
        stop = fired[i]
        for panel in made.axes if stop is not None else ():
            panel.axvline(stop or 0, linewidth=1.2, alpha=0.5, zorder=1, **style(i))
    for panel in made.axes:
        label_curves(panel)
    _explain(made, kinds, any(step is not None for step in fired))
    settle_labels(made)
    return made


def _draw(panel: Axes, what: str, names: Sequence[str], curves: Sequence[Curve]) -> None:
    for i, (name, (steps, values)) in enumerate(zip(names, curves, strict=True)):
        if not steps:
            continue
        marker: dict[str, Any] = {"marker": "o", "markersize": 4} if what == EVALUATION or len(steps) == 1 else {}
        panel.plot(steps, values, linewidth=1.7, label=name, **marker, **style(i))
    panel.set_ylabel(what)
    panel.grid(axis="y", alpha=0.25)
    if what == SCALAR:
        panel.set_ylim(-1, 1)
    elif what in (RATE, FACTOR):
        panel.set_ylim(bottom=0)
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _shadow(panel: Axes, lines: Sequence[Sequence[Line]]) -> None:
    """The losses as they were logged, behind their smooth curves, whose scale they do not decide."""
    limits = panel.get_ylim()
    for i, found in enumerate(lines):
        panel.plot(*series(found, "loss"), color=style(i)["color"], linewidth=0.8, alpha=0.25, zorder=1)
    panel.set_ylim(limits)


def _explain(figure: Figure, kinds: set[str], has_fired: bool) -> None:
    """What the shapes and the vertical lines mean, below the panels."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    shapes: dict[str, list[str]] = {}
    for kind in MARKS:
        if kind in kinds:
            shapes.setdefault(MARKS[kind][0], []).append(kind)
    for shape, names in shapes.items():
        label = ", ".join(names)
        handles.append(
            Line2D([], [], linestyle="", marker=shape, color=DARK, markerfacecolor="white", markersize=7, label=label)
        )
    if has_fired:
        handles.append(Line2D([], [], color=DARK, linewidth=1.2, alpha=0.5, label="upright: the stop signal begins"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)


def _smooth_loss(lines: Sequence[Line]) -> Curve:
    steps, values = series(lines, "loss")
    if steps:
        return steps, smoothed(values)
    return series(lines, PREFIX + "loss_short")


def smoothed(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential average without a bias towards its beginning; what is not a number leaves a gap."""
    average, total, made = 0.0, 0.0, []
    for value in values:
        if not math.isfinite(value):
            made.append(math.nan)
            continue
        average, total = weight * average + (1 - weight) * value, weight * total + (1 - weight)
        made.append(average / total)
    return made


def _rates(lines: Sequence[Line]) -> Curve:
    """The effective rate of the first group where there is an emotion, else the schedule's."""
    effective = PREFIX + "effective_lr"
    if any(effective in line for line in lines):
        return series(lines, effective)
    return series(lines, "learning_rate")
