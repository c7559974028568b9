"""Pictures of what can be said of the arms: differences from the reference, and who gets there how fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emo_hf.study.analysis import TAUS
from emo_hf.study.differences import BETTER, WORSE, Difference
from emo_hf.study.figure_sheet import BETTER_COLOR, GREY, REFERENCE, WORSE_COLOR, Sheet
from emo_hf.study.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class DifferenceFigures(Sheet):
    """Differences with their intervals, and performance profiles."""

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
            panel.axvline(0, color=REFERENCE, linewidth=1)
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
            color = GREY if interval.covers_zero else BETTER_COLOR if interval.mean < 0 else WORSE_COLOR
            panel.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=2)
            panel.plot([100 * interval.mean], [row], "o", color=color)
        panel.axvline(0, color=REFERENCE, linewidth=1)
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
    color = {BETTER: BETTER_COLOR, WORSE: WORSE_COLOR}.get(difference.verdict, GREY)
    if math.isfinite(low):
        panel.plot([low, high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
    if abs(mean) <= limit:
        panel.plot([mean], [row], marker="o", color=color, markerfacecolor=color if shown else "white")
        return
    side = 0.98 if mean > 0 else 0.02
    text = f"{mean:+,.0f} % →" if mean > 0 else f"← −{-mean:,.0f} %"
    panel.text(side, row + 0.12, text, transform=panel.get_yaxis_transform(), fontsize=8, color=color,
               ha="right" if mean > 0 else "left", va="bottom")  # fmt: skip
