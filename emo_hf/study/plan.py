"""From a study to its runs: learning rates are tuned on some seeds, then fresh seeds are run at the best of them.

A run's id says what it is, task/arm/rate/seed. All arms of a task and a seed have the same data in the same order, the
same initial weights and the same number of steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emo_hf.study.specification import ALL, ArmSpec, Study, TaskSpec

TUNE, REPORT = "tune", "report"

Line = Mapping[str, Any]
"""What a run has come to, as it stands in `runs.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        task, arm: what is trained, and with what.
        rate: the learning rate.
        seed: of data order, initial weights and everything else that is drawn.
        phase: `tune` or `report`.
        steps: optimizer steps; None for what the task's config says.
        evaluations: how often it evaluates, beside once before the first step.
        source: the run whose factors it takes in place of its law's.
    """

    task: TaskSpec
    arm: ArmSpec
    rate: float
    seed: int
    phase: str
    steps: int | None
    evaluations: int
    source: str | None = None

    @property
    def id(self) -> str:
        return run_id(self.task.name, self.arm.name, self.rate, self.seed)

    def config(self) -> dict[str, Any]:
        """All that decides what comes out, as plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        del plain["phase"]
        for part, key in (("task", "faults"), ("arm", "guard")):  # runs from before there were any are still done
            if plain[part][key] is None:
                del plain[part][key]
        return plain

    def is_done_by(self, line: Line | None) -> bool:
        """Whether a line is of this run as it is planned now, and came to its end."""
        return line is not None and "error" not in line and line.get("config") == self.config()


def run_id(task: str, arm: str, rate: float, seed: int) -> str:
    return f"{task}/{arm}/{rate:g}/seed{seed}"


def tune_runs(study: Study) -> list[Run]:
    """The runs that tune: every rate of every arm that has rates of its own, for each tuning seed.

    A task with faults has none: its arms take the rates that they were tuned to without.
    """
    return [
        _run(study, study.tasks[task], arm, rate, seed, TUNE)
        for task in study.clean_tasks
        for arm in study.arms.values()
        if study.source_of(arm) is None
        for rate in study.rates_of(arm)
        for seed in study.seeds.to_tune
    ]


def report_runs(study: Study, best: Mapping[tuple[str, str], float], *, following: bool) -> list[Run]:
    """The runs on fresh seeds.

    Args:
        study: the study.
        best: (task, arm) → the tuned rate; arms that are missing could not be tuned, and have no runs. A task with
            faults takes those of its clean twin.
        following: the arms that take the factors of others, which must have run before; else all others.
    """
    runs = []
    for task in study.tasks.values():
        for arm in study.arms.values():
            source = study.source_of(arm)
            tuned = task.tuned_as, source or arm.name
            if (source is not None) != following or tuned not in best:
                continue
            rates = study.rates_of(study.arms[source or arm.name])
            chosen = rates if study.report_rates == ALL else (best[tuned],)
            runs += [_report_run(study, task, arm, rate, seed) for rate in chosen for seed in study.seeds.to_report]
    return runs


def _report_run(study: Study, task: TaskSpec, arm: ArmSpec, rate: float, seed: int) -> Run:
    source = study.source_of(arm)
    if source is None:
        return _run(study, task, arm, rate, seed, REPORT)
    seeds = study.seeds.to_report
    replays = (arm.law or "").startswith("replay:")
    theirs = seeds[(seeds.index(seed) + 1) % len(seeds)] if replays else seed
    return _run(study, task, arm, rate, seed, REPORT, run_id(task.name, source, rate, theirs))


def _run(
    study: Study, task: TaskSpec, arm: ArmSpec, rate: float, seed: int, phase: str, source: str | None = None
) -> Run:
    steps = task.steps if task.steps is not None else study.steps
    return Run(
        task=task,
        arm=arm,
        rate=rate,
        seed=seed,
        phase=phase,
        steps=steps,
        evaluations=study.evaluations if steps is None else min(study.evaluations, steps),
        source=source,
    )


def best_rates(study: Study, lines: Mapping[str, Line]) -> dict[tuple[str, str], float]:
    """(task, arm) → the rate with the lowest loss at the end, averaged over the tuning seeds.

    Args:
        study: the study.
        lines: id → line of the runs that are done.

    Returns:
        Only the arms of which every tuning run is done and one rate at least has not diverged.
    """
    ends: dict[tuple[str, str], dict[float, list[float]]] = {}
    missing = set()
    for run in tune_runs(study):
        key = run.task.name, run.arm.name
        line = lines.get(run.id)
        if line is None or not run.is_done_by(line):
            missing.add(key)
            continue
        ends.setdefault(key, {}).setdefault(run.rate, []).append(end_of(line))
    best = {}
    for key, of_rates in ends.items():
        means = {rate: sum(losses) / len(losses) for rate, losses in of_rates.items()}
        rate = min(means, key=means.__getitem__)
        if key not in missing and math.isfinite(means[rate]):
            best[key] = rate
    return best


def end_of(line: Line) -> float:
    """The loss that a run ended with on data that is held out; infinite if it diverged."""
    end = line.get("end")
    return math.inf if end is None else float(end)


def planned_counts(study: Study) -> dict[str, int]:
    """How many runs tune and how many report, if every arm can be tuned."""
    everywhere = {(task, arm): 0.0 for task in study.tasks for arm in study.arms}
    report = [run for following in (False, True) for run in report_runs(study, everywhere, following=following)]
    return {TUNE: len(tune_runs(study)), REPORT: len(report)}


def matching(runs: Iterable[Run], patterns: Iterable[str]) -> list[Run]:
    """The runs whose id holds one of the patterns; all if there are none."""
    wanted = list(patterns)
    return [run for run in runs if not wanted or any(pattern in run.id for pattern in wanted)]
