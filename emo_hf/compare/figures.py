"""The pictures of a report, PNGs by matplotlib."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emo_hf.compare.analysis import BETTER, TAUS, WITHIN, WORSE, Analysis, Difference
from emo_hf.compare.figure_marks import mark_decisions
from emo_hf.compare.plan import Line
from emo_hf.compare.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = (
    "#1f5fa8", "#e07b1a", "#2a8f5b", "#c23b3b", "#7a4fb5", "#0f9aa8", "#b5497f", "#8c6d1f", "#5aa9e6", "#9bbf3b",
)  # fmt: skip
_REFERENCE = "#111111"
_GREY = "#8a8f98"
_BETTER, _WORSE = "#1c7a45", "#b3261e"
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<>h"
DPI = 130
COLUMNS = 3
HEADROOM = 1.6
"""A panel shows losses up to so many times the distance between best and typical: not those that blew up."""

SMALL = 0.05
"""Where a factor is usually below this, since its law makes the rate itself, the scale is logarithmic."""


class Figures:
    """Draws a report's pictures into a folder.

    Args:
        analysis: what to draw.
        folder: where the PNGs go.
    """

    def __init__(self, analysis: Analysis, folder: Path) -> None:
        self.analysis = analysis
        self.folder = folder
        study = analysis.study
        others = [arm for arm in study.arms if arm != study.reference]
        self._style: dict[str, dict[str, Any]] = {
            study.reference: {"color": _REFERENCE, "linestyle": "-", "marker": "o"}
        }
        for i, arm in enumerate(others):
            dash = _DASHES[i // len(_COLORS) % len(_DASHES)]
            marker = _MARKERS[(i + 1) % len(_MARKERS)]
            self._style[arm] = {"color": _COLORS[i % len(_COLORS)], "linestyle": dash, "marker": marker}
        for i, style in enumerate(self._style.values()):  # lines that lie on each other shall all be seen
            style["linewidth"] = 2.8 - 1.8 * i / max(len(self._style) - 1, 1)

    def learning_rates(self, file: str) -> bool:
        """Loss at the end against the learning rate, a panel a task. False if there is nothing to draw."""
        tasks = {task: self._curves_by_rate(task) for task in self.analysis.rated_tasks()}
        if not tasks:
            return False
        figure, panels = self._panels(len(tasks))
        for panel, (task, curves) in zip(panels, tasks.items(), strict=False):
            best = min((loss for losses in curves.values() for loss in losses.values()), default=math.inf)
            top = _top([loss for losses in curves.values() for loss in losses.values()])
            for arm, losses in curves.items():
                shown = {rate: min(loss, top) for rate, loss in losses.items()}
                panel.plot(list(shown), list(shown.values()), label=arm, markersize=4, **self._style[arm])
                beyond = [rate for rate, loss in losses.items() if loss > top]
                if beyond:
                    (above,) = panel.plot(
                        beyond, [top] * len(beyond), linestyle="none", marker="^", markersize=8, clip_on=False,
                        markerfacecolor="white", markeredgecolor=self._style[arm]["color"], zorder=5,
                    )  # fmt: skip
                    above.set_in_layout(False)
            if math.isfinite(best):
                panel.axhspan(best, best + WITHIN[-1] * abs(best), color="#e2f3e8", linewidth=0, zorder=0)
            panel.set_xscale("log")
            panel.set_title(task, loc="left", fontsize=10)
            panel.set_ylim(top=top)
            panel.set_xlabel("learning rate")
            panel.set_ylabel("evaluation loss at the end")
        self._finish(figure, panels, file)
        return True

    def _curves_by_rate(self, task: str) -> dict[str, dict[float, float]]:
        study = self.analysis.study
        arms = [arm for arm in study.arms if study.source_of(study.arms[arm]) is None]
        curves = {arm: self.analysis.by_rate(task, arm) for arm in arms}
        return {arm: losses for arm, losses in curves.items() if losses}

    def steps(self, file: str) -> bool:
        """Evaluation loss against steps at the tuned rates, mean and range over seeds, with what laws decided."""
        tasks = self.analysis.study.tasks
        found = {task: {arm: self.analysis.reported(task, arm) for arm in self._style} for task in tasks}
        if not any(lines for arms in found.values() for lines in arms.values()):
            return False
        figure, panels = self._panels(len(tasks))
        marks: dict[str, Any] = {}
        for panel, (task, arms) in zip(panels, found.items(), strict=False):
            curves = {arm: curve for arm, lines in arms.items() if (curve := _mean_curve(lines))[0]}
            for arm, (steps, mean, low, high) in curves.items():
                style = self._line(arm)
                panel.plot(steps, mean, label=arm, **style)
                panel.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
            panel.set_title(task, loc="left", fontsize=10)
            drawn = [
                loss for _, mean, _, _ in curves.values() for loss in mean[len(mean) // 3 :] if math.isfinite(loss)
            ]
            if drawn:
                bottom, top = min(drawn), _top(drawn)
                panel.set_ylim(bottom - 0.08 * (top - bottom), top)
                for arm, (steps, mean, _, _) in curves.items():
                    marks |= mark_decisions(panel, arms[arm], steps, mean, self._style[arm]["color"], top)
            panel.set_xlabel("optimizer step")
            panel.set_ylabel("evaluation loss")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        self._finish(figure, panels, file, marks)
        return True

    def differences(self, file: str) -> bool:
        """Paired differences from the reference with their intervals, a panel a task."""
        study = self.analysis.study
        found = {task: self.analysis.differences(task) for task in study.tasks}
        found = {task: arms for task, arms in found.items() if any(d.interval for d in arms.values())}
        if not found:
            return False
        arms = [arm for arm in study.arms if arm != study.reference]
        figure, panels = self._panels(len(found), height=1.0 + 0.3 * len(arms), share_y=True)
        for panel, (task, differences) in zip(panels, found.items(), strict=False):
            limit = _limit([d.interval for d in differences.values() if d.interval is not None])
            for row, arm in enumerate(reversed(arms)):
                if arm in differences:
                    _draw_difference(panel, row, differences[arm], limit)
            panel.set_xlim(-limit, limit)
            panel.axvline(0, color=_REFERENCE, linewidth=1)
            panel.set_yticks(range(len(arms)), list(reversed(arms)))
            panel.set_ylim(-0.6, len(arms) - 0.4)
            panel.set_title(task, loc="left", fontsize=10)
            panel.set_xlabel(f"loss at the end against {study.reference}, %")
        self._save(figure, panels, file)
        return True

    def means(self, file: str) -> bool:
        """The mean difference over all tasks with its interval, the best arm on top."""
        study = self.analysis.study
        found = {arm: self.analysis.over_all_tasks(arm) for arm in study.arms if arm != study.reference}
        means = {arm: interval for arm, interval in found.items() if interval is not None}
        if not means or len(study.clean_tasks) < 2:
            return False
        arms = sorted(means, key=lambda arm: -means[arm].mean)
        figure, (panel, *_) = self._panels(1, width=7.5, height=1.0 + 0.25 * len(arms))
        for row, arm in enumerate(arms):
            interval = means[arm]
            color = _GREY if interval.covers_zero else _BETTER if interval.mean < 0 else _WORSE
            panel.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=2)
            panel.plot([100 * interval.mean], [row], "o", color=color)
        panel.axvline(0, color=_REFERENCE, linewidth=1)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_xlabel(f"loss at the end against {study.reference}, %, mean over {len(study.clean_tasks)} tasks")
        self._save(figure, [panel], file)
        return True

    def profiles(self, file: str) -> bool:
        """Performance profiles to τ = 4."""
        profiles = self.analysis.profiles()
        if not any(any(shares) for shares in profiles.values()):
            return False
        figure, panels = self._panels(1, width=7.5, height=3.6)
        for arm, shares in profiles.items():
            style = self._line(arm)
            panels[0].step(TAUS, shares, where="post", label=arm, **style)
        panels[0].set_ylim(-0.02, 1.02)
        panels[0].set_xlim(1, TAUS[-1])
        panels[0].set_xlabel("τ: steps taken, as a multiple of the fastest arm's")
        panels[0].set_ylabel("share of tasks and seeds\nthat got there")
        self._finish(figure, panels, file)
        return True

    def factors(self, file: str) -> bool:
        """What the emotions did to the learning rate, mean over seeds."""
        study = self.analysis.study
        tasks = {}
        for task in study.tasks:
            of_task = {arm: [x for x in self.analysis.reported(task, arm) if x["emotion"]] for arm in study.arms}
            tasks[task] = {arm: lines for arm, lines in of_task.items() if lines}
        tasks = {task: arms for task, arms in tasks.items() if arms}
        if not tasks:
            return False
        figure, panels = self._panels(len(tasks))
        for panel, (task, arms) in zip(panels, tasks.items(), strict=False):
            for arm, lines in arms.items():
                style = self._line(arm)
                values = _mean_factors(lines)
                panel.plot(range(1, len(values) + 1), values, label=arm, **style)
            panel.axhline(1, color=_GREY, linewidth=0.8, zorder=0)
            if any(line["emotion"]["coefficient"]["median"] < SMALL for lines in arms.values() for line in lines):
                panel.set_yscale("log")
            panel.set_title(task, loc="left", fontsize=10)
            panel.set_xlabel("optimizer step")
            panel.set_ylabel("factor on the learning rate")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        self._finish(figure, panels, file)
        return True

    def costs(self, file: str) -> bool:
        """Time in the optimizer's step, and of the whole step, a panel a task."""
        study = self.analysis.study
        found = {task: {arm: self.analysis.cost(task, arm) for arm in study.arms} for task in study.tasks}
        found = {task: arms for task, arms in found.items() if any(arms.values())}
        if not found:
            return False
        figure, panels = self._panels(len(found), height=0.9 + 0.26 * len(study.arms), share_y=True)
        for panel, (task, arms) in zip(panels, found.items(), strict=False):
            for row, arm in enumerate(reversed(list(study.arms))):
                cost = arms[arm]
                if cost is None:
                    continue
                inside = 1e3 * (cost.optimizer_seconds or 0.0)
                panel.barh(row, inside, height=0.62, color=self._style[arm]["color"])
                panel.text(inside, row, f"  of {1e3 * cost.step_seconds:.3g} ms a step", va="center", fontsize=7.5)
            panel.set_yticks(range(len(study.arms)), list(reversed(list(study.arms))))
            panel.set_title(task, loc="left", fontsize=10)
            panel.set_xlim(0, 1.6 * panel.get_xlim()[1])
            panel.set_xlabel("ms in the optimizer's step")
        self._save(figure, panels, file)
        return True

    def _line(self, arm: str) -> dict[str, Any]:
        return {key: self._style[arm][key] for key in ("color", "linestyle", "linewidth")}

    def _panels(
        self, count: int, *, width: float = 4.1, height: float = 3.1, share_y: bool = False
    ) -> tuple[Figure, list[Axes]]:
        columns = min(count, COLUMNS)
        rows = math.ceil(count / columns)
        figure = Figure(
            figsize=(width * max(columns, 1.6 if width < 7 else 1), height * rows + 0.5), layout="constrained"
        )
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
        for panel in panels[count:]:
            panel.remove()
        return figure, panels[:count]

    def _finish(
        self, figure: Figure, panels: Sequence[Axes], file: str, marks: Mapping[str, Any] | None = None
    ) -> None:
        known: dict[str, Any] = {}
        for panel in panels:
            panel.grid(axis="y", alpha=0.25)
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                known.setdefault(label, handle)
        ordered = [arm for arm in self.analysis.study.arms if arm in known]
        known |= marks or {}
        ordered += marks or {}
        figure.legend(
            [known[name] for name in ordered], ordered, loc="outside lower center", ncols=min(len(ordered), 5),
            frameon=False, fontsize=8.5,
        )  # fmt: skip
        self._save(figure, panels, file)

    def _save(self, figure: Figure, panels: Sequence[Axes], file: str) -> None:
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8.5)
        figure.savefig(self.folder / file, dpi=DPI)


def _limit(intervals: Sequence[Interval]) -> float:
    """How many percent a panel of differences shows to either side: not all that the worst arm needs."""
    sizes = sorted(100 * max(abs(edge) for edge in (i.mean, i.low, i.high) if math.isfinite(edge)) for i in intervals)
    return max(1.15 * min(sizes[-1], 2.0 * sizes[len(sizes) // 2]), 0.1) if sizes else 1.0


def _draw_difference(panel: Axes, row: int, difference: Difference, limit: float) -> None:
    if difference.interval is None:
        said = f"diverged in {difference.diverged} of {difference.seeds}"
        panel.text(0.98, row, said, transform=panel.get_yaxis_transform(), fontsize=8, va="center", ha="right")
        return
    mean, low, high = (
        100 * edge for edge in (difference.interval.mean, difference.interval.low, difference.interval.high)
    )
    shown = difference.verdict in (BETTER, WORSE)
    color = {BETTER: _BETTER, WORSE: _WORSE}.get(difference.verdict, _GREY)
    if math.isfinite(low):
        panel.plot([low, high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
    if abs(mean) <= limit:
        panel.plot([mean], [row], marker="o", color=color, markerfacecolor=color if shown else "white")
        return
    side = 0.98 if mean > 0 else 0.02
    text = f"{mean:+,.0f} % →" if mean > 0 else f"← −{-mean:,.0f} %"
    panel.text(side, row + 0.12, text, transform=panel.get_yaxis_transform(), fontsize=8, color=color,
               ha="right" if mean > 0 else "left", va="bottom")  # fmt: skip


def _top(losses: Sequence[float]) -> float:
    """Up to where a panel shows losses."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    if not finite:
        return 1.0
    low, middle = finite[0], finite[math.ceil(0.75 * (len(finite) - 1))]
    top = min(finite[-1], low + HEADROOM * (middle - low))
    return top + 0.04 * (top - low or abs(low) or 1.0)


def _mean_curve(lines: Sequence[Line]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps at which all runs have evaluated, with mean, lowest and highest loss."""
    curves: list[Mapping[int, float]] = [
        {step: math.nan if loss is None else loss for step, loss in line["curve"]["evaluations"]} for line in lines
    ]
    if not curves:
        return [], [], [], []
    steps = sorted(step for step in curves[0] if all(step in curve for curve in curves))
    values = [[curve[step] for curve in curves] for step in steps]
    return steps, [statistics.fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def _mean_factors(lines: Sequence[Line]) -> list[float]:
    series = [line["emotion"]["factors"] for line in lines]
    return [statistics.fmean(one[i] for one in series) for i in range(min(map(len, series)))]
