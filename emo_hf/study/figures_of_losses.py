"""Pictures of losses: against the learning rate, and against steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from emo_hf.study.analysis import WITHIN
from emo_hf.study.figure_marks import mark_decisions
from emo_hf.study.figure_sheet import Sheet
from emo_hf.study.plan import Line

HEADROOM = 1.6
"""A panel shows losses up to so many times the distance between best and typical: not those that blew up."""


class LossFigures(Sheet):
    """Where the arms end at each rate, and how they get there."""

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
