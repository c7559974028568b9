"""Pictures of what emotions did to the learning rate, and of what a step costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from emo_hf.study.figure_sheet import GREY, Sheet
from emo_hf.study.plan import Line

SMALL = 0.05
"""Where a factor is usually below this, since its law makes the rate itself, the scale is logarithmic."""


class BehaviourFigures(Sheet):
    """Factors and costs."""

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
            panel.axhline(1, color=GREY, linewidth=0.8, zorder=0)
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


def _mean_factors(lines: Sequence[Line]) -> list[float]:
    series = [line["emotion"]["factors"] for line in lines]
    return [statistics.fmean(one[i] for one in series) for i in range(min(map(len, series)))]
