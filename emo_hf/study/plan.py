"""From a study and the runs that are done to the runs that are next.

1. Every arm is run at rates half a decade apart over the range; a best rate at the edge widens it.
2. Then a quarter of a decade on either side of the best, until the best lies between two that are worse; and so far
   around it that a rate wrong by 3 or by 10 can be read off.
3. Then fresh seeds at the best rate. An arm with an average is one set of runs and two results, each with a best rate.

Rates are counted in quarters of a decade: number q stands for the rate 10^(q/4), so 1e-3 is −12 and 3.16e-3 is −10.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emo_hf.study.schema import ArmSpec, Judged, Study, TaskSpec
from emo_hf.study.task import JUDGE, TUNE

Line = Mapping[str, Any]
"""What a run has come to, as it stands in `runs.jsonl`."""

HALF, DECADE = 2, 4
WIDEN = 8
"""How far beyond the range the search for a best rate goes, in quarters of a decade: two decades."""
USUAL_LATER = 4
"""So many rates mostly follow the first ones of an arm: between them, and beyond their ends."""


def rate_of(quarter: int) -> float:
    """The learning rate 10^(q/4), to three digits."""
    return float(f"{10 ** (quarter / 4):.2e}")


def half_decades(low: float, high: float) -> range:
    """The rates half a decade apart over a range, whose ends are rounded to such; in quarters of a decade."""
    first, last = (HALF * round(2 * math.log10(rate)) for rate in (low, high))
    return range(first, last + 1, HALF)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        task, arm: what is trained, and with what.
        rate: the learning rate.
        seed: of data order, initial weights and everything else that is drawn.
        phase: `tune` or `judge`; no run is both, as their seeds differ.
        steps: optimizer steps; None for what the task's config says.
        evaluations: how often it evaluates, beside once before the first step.
    """

    task: TaskSpec
    arm: ArmSpec
    rate: float
    seed: int
    phase: str
    steps: int | None
    evaluations: int

    @property
    def id(self) -> str:
        """For people."""
        return f"{self.task.name}/{self.arm.name}/{self.rate:g}/seed{self.seed}"

    def config(self) -> dict[str, Any]:
        """All that decides what comes out, as plain values: no names, and nothing of how it is judged."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        del plain["phase"]
        for key in ("name", "steps", "seeds", "learning_rates", "rates_of"):
            del plain["task"][key]
        for key in ("name", "learning_rates"):
            del plain["arm"][key]
        plain["arm"]["average"] = bool(plain["arm"]["average"])
        return plain

    @functools.cached_property
    def key(self) -> str:
        """Stands for `config`: by this a run is found again."""
        text = json.dumps(self.config(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Plan:
    """What is done of a study, by the lines of its runs (key → line), and what comes next."""

    def __init__(self, study: Study, lines: Mapping[str, Line]) -> None:
        self.study = study
        self._runs: dict[tuple[str, str, int, int], Run] = {}
        self.update(lines)

    def update(self, lines: Mapping[str, Line]) -> None:
        """Plan anew from the runs that are done by now."""
        self._lines = lines
        self.best: dict[tuple[str, str], int] = {}
        """(task, judged arm) → the tuned rate; only where tuning is over."""
        self.open: list[Run] = []
        """The runs that can be done now, in order."""
        self.later: dict[str, int] = {}
        """Task → about how many more will follow them."""
        for task in self.study.tasks.values():
            self._plan(task)

    def line(self, run: Run) -> Line | None:
        """The line of a run that came to its end."""
        found = self._lines.get(run.key)
        return None if found is None or "error" in found else found

    def rate(self, task: TaskSpec, judged: str) -> int | None:
        """The tuned rate of a judged arm on a task; that of its twin where the task takes another's rates."""
        return self.best.get((task.rates_of or task.name, judged))

    def losses(self, task: TaskSpec, judged: Judged, half: str) -> dict[int, float]:
        """Rate → mean loss of the tuning seeds at the end, where all are done; infinite where one is lost."""
        grid = self.grid(task, judged.arm)
        found = {}
        for quarter in range(grid[0] - 2 * WIDEN, grid[-1] + 2 * WIDEN + 1):
            done = self._done(self._tune_runs(task, judged.arm, quarter))
            if len(done) == self.study.tune:
                found[quarter] = statistics.fmean(end_of(line, judged, half) for line in done)
        return found

    def reported(self, task: TaskSpec, judged: Judged) -> list[Line]:
        """The lines of the fresh seeds at the tuned rate, by seed."""
        return self._done(self._fresh_runs(task, judged))

    def _done(self, runs: Iterable[Run]) -> list[Line]:
        return [line for run in runs if (line := self.line(run)) is not None]

    def runs(self) -> list[Run]:
        """Every run that is planned by now, done or not."""
        return [*self._runs.values()]

    def first_run(self, task: TaskSpec, arm: ArmSpec) -> Run:
        """Any run of an arm on a task, to see what is wrong with both."""
        return self._run(task, arm, self.grid(task, arm)[0], 1, TUNE)

    def grid(self, task: TaskSpec, arm: ArmSpec) -> range:
        """The rates that an arm is run at first."""
        return half_decades(*(arm.learning_rates or task.learning_rates or self.study.learning_rates))

    def _run(self, task: TaskSpec, arm: ArmSpec, quarter: int, seed: int, phase: str) -> Run:
        """Made once, as its key takes some time."""
        at = (task.name, arm.name, quarter, seed)
        if at not in self._runs:
            steps, evaluations = task.steps or self.study.steps, self.study.evaluations
            self._runs[at] = Run(
                task=task, arm=arm, rate=rate_of(quarter), seed=seed, phase=phase, steps=steps,
                evaluations=min(evaluations, steps or evaluations),
            )  # fmt: skip
        return self._runs[at]

    def _tune_runs(self, task: TaskSpec, arm: ArmSpec, quarter: int) -> list[Run]:
        return [self._run(task, arm, quarter, seed, TUNE) for seed in range(1, self.study.tune + 1)]

    def _fresh_runs(self, task: TaskSpec, judged: Judged) -> list[Run]:
        quarter, seeds = self.rate(task, judged.name), self.study.fresh_seeds(task)
        return [] if quarter is None else [self._run(task, judged.arm, quarter, seed, JUDGE) for seed in seeds]

    def _plan(self, task: TaskSpec) -> None:
        judged, reference = self.study.judged, self.study.judged[self.study.reference]
        wanted: dict[str, Run] = {}
        later = 0
        for each in sorted(judged.values(), key=lambda each: each.name != reference.name):  # others look at its rate
            if task.rates_of is None:
                near = None if each.arm.learning_rates else self.best.get((task.name, reference.name))
                losses = self.losses(task, each, TUNE)
                missing = next_rates(losses, self.grid(task, each.arm), near)
                for quarter in missing:
                    wanted |= {run.key: run for run in self._tune_runs(task, each.arm, quarter)}
                if missing:
                    later += (0 if losses else USUAL_LATER * self.study.tune) + len(self.study.fresh_seeds(task))
                elif math.isfinite(min(losses.values(), default=math.inf)):
                    self.best[task.name, each.name] = best_of(losses)
            elif self.rate(task, each.name) is None:
                later += len(self.study.fresh_seeds(task))
            wanted |= {run.key: run for run in self._fresh_runs(task, each)}
        self.open += [run for run in wanted.values() if self.line(run) is None]
        self.later[task.name] = later


def best_of(losses: Mapping[int, float]) -> int:
    """The rate with the lowest loss; the lower one of two that are equal."""
    return min(losses, key=lambda quarter: (losses[quarter], quarter))


def next_rates(losses: Mapping[int, float], grid: range, near: int | None) -> list[int]:
    """The rates that an arm has to be run at next; none when its best rate is known well enough.

    Args:
        losses: rate → loss, of what has been run; infinite where it was lost.
        grid: the rates half a decade apart that are run first.
        near: the best rate of the reference: half a decade on either side of it is run too.
    """
    if missing := [quarter for quarter in grid if quarter not in losses]:
        return missing
    allowed = range(grid[0] - WIDEN, grid[-1] + WIDEN + 1)

    def open_ones(quarters: Iterable[int]) -> list[int]:
        return sorted({quarter for quarter in quarters if quarter in allowed} - losses.keys())

    halves = {quarter: loss for quarter, loss in losses.items() if quarter % HALF == 0}
    best, lowest, highest = best_of(halves), min(halves), max(halves)
    if not math.isfinite(halves[best]):  # lost everywhere: lower rates may do, higher ones will not
        return open_ones([lowest - HALF])
    if missing := open_ones([lowest - HALF] * (best == lowest) + [highest + HALF] * (best == highest)):
        return missing
    best = best_of(losses)
    if missing := open_ones([best - 1, best + 1]):
        return missing
    wrong = [best + away for away in (-DECADE, -HALF, HALF, DECADE)]
    wrong += [] if near is None else [near - HALF, near, near + HALF]
    # A rate of half a decade itself; of one in between, the two beside it.
    return open_ones(at + beside for at in wrong for beside in ((0,) if at % HALF == 0 else (-1, 1)))


def loss_at_rate(losses: Mapping[int, float], at: int) -> float:
    """The loss at a rate: as it was run, or half-way between those beside it; NaN where there are none."""
    if at in losses:
        return losses[at]
    return statistics.fmean(losses.get(quarter, math.nan) for quarter in (at - 1, at + 1))


def end_of(line: Line, judged: Judged, half: str) -> float:
    """The loss that a run ended with on a half of the held-out data; infinite if the run is lost.

    A run is lost if that loss is not finite, or no better than at the start, or than an answer by chance. An arm that
    stops itself is judged at its best evaluation on the tuning half, which it may hear: that is what the Trainer keeps
    with `load_best_model_at_end`.
    """
    curve, kept = curve_of(line, judged, half), -1
    if judged.arm.self_stop == "stop":
        heard = [math.inf if loss is None else loss for _, loss in curve_of(line, judged, TUNE)]
        kept = heard.index(min(heard))
    start, end = curve[0][1], curve[kept][1]
    bound = min((bound for bound in (start, line["chance"]) if bound is not None), default=math.inf)
    return math.inf if end is None or end >= bound else float(end)


def curve_of(line: Line, judged: Judged, half: str) -> list[list[Any]]:
    """[step, loss] of the evaluations; a loss that is not finite is None."""
    curve: list[list[Any]] = line["curves"]["average" if judged.averaged else "weights"][half]
    return curve


def matching(runs: Iterable[Run], patterns: Iterable[str]) -> list[Run]:
    """The runs whose id holds one of the patterns; all if there are none."""
    wanted = list(patterns)
    return [run for run in runs if not wanted or any(pattern in run.id for pattern in wanted)]
