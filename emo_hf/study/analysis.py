"""From the lines of a study's runs to what is said about them: numbers that tests can check, no text, no pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from emo_hf.study.differences import Difference, differences_of, relative
from emo_hf.study.pairing import pairing_problems
from emo_hf.study.plan import REPORT, TUNE, Line, best_rates, end_of, report_runs, tune_runs
from emo_hf.study.specification import Study
from emo_hf.study.statistics import (
    Interval,
    Width,
    good_range,
    mean_of_means_interval,
    profile,
    steps_to,
)
from emo_hf.study.stopping import RULES, Verdict, ended_by_itself, verdict

WITHIN = (0.01, 0.05)
TARGET = 0.01
"""An arm has got there when its loss is within this share of where the reference ends."""
TAUS = tuple(1.0 + 0.02 * i for i in range(151))  # to 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians over the runs of an arm on a task."""

    step_seconds: float
    optimizer_seconds: float | None
    state_bytes_per_parameter: float
    peak_memory_bytes: float | None


class Analysis:
    """Everything that can be said of a study's runs.

    Args:
        study: the study.
        lines: id → line; those of other studies, and of runs planned otherwise, are left out.
    """

    def __init__(self, study: Study, lines: Mapping[str, Line]) -> None:
        self.study = study
        self.best = best_rates(study, lines)
        planned = [*tune_runs(study)]
        for following in (False, True):
            planned += report_runs(study, self.best, following=following)
        self.lines: list[Line] = [lines[run.id] for run in planned if run.is_done_by(lines.get(run.id))]
        self.failed: list[Line] = [lines[run.id] for run in planned if "error" in lines.get(run.id, {})]
        self.missing = [run.id for run in planned if run.id not in lines or not run.is_done_by(lines[run.id])]
        self.pairing = pairing_problems(study, self.lines)

    def rate(self, task: str, arm: str) -> float | None:
        """The tuned learning rate: an ablation's is that of the arm whose factors it takes, a task's with faults that
        of its clean twin."""
        return self.best.get((self.study.tasks[task].tuned_as, self.study.source_of(self.study.arms[arm]) or arm))

    def of(self, task: str, arm: str, phase: str, rate: float | None = None) -> list[Line]:
        """The runs of an arm on a task, by seed."""
        found = [x for x in self.lines if x["task"] == task and x["arm"] == arm and x["phase"] == phase]
        return sorted((x for x in found if rate is None or x["rate"] == rate), key=lambda x: x["seed"])

    def reported(self, task: str, arm: str) -> list[Line]:
        """The runs on fresh seeds at the tuned rate."""
        rate = self.rate(task, arm)
        return [] if rate is None else self.of(task, arm, REPORT, rate)

    def by_rate(self, task: str, arm: str) -> dict[float, float]:
        """Rate → mean loss at the end: of the fresh seeds where the study runs them at every rate, else of tuning."""
        lines = self.of(task, arm, REPORT)
        if len({line["rate"] for line in lines}) < 2:
            lines = self.of(task, arm, TUNE) or lines
        rates = sorted({line["rate"] for line in lines})
        return {rate: statistics.fmean(end_of(x) for x in lines if x["rate"] == rate) for rate in rates}

    def is_tuned(self, task: str, arm: str) -> bool:
        """Whether an arm has been run at all of its rates, or follows one that has."""
        spec = self.study.arms[self.study.source_of(self.study.arms[arm]) or arm]
        tried = {line["rate"] for line in self.of(self.study.tasks[task].tuned_as, spec.name, TUNE)}
        return tried >= set(self.study.rates_of(spec))

    def rated_tasks(self) -> list[str]:
        """The tasks on which an arm has been run at more than one rate: those with faults mostly are not."""
        free = [arm.name for arm in self.study.arms.values() if self.study.source_of(arm) is None]
        return [task for task in self.study.tasks if any(len(self.by_rate(task, arm)) > 1 for arm in free)]

    def ends(self, task: str, arm: str) -> list[float]:
        return [end_of(line) for line in self.reported(task, arm)]

    def differences(self, task: str) -> dict[str, Difference]:
        """Every arm but the reference, with Holm over them."""
        others = [arm for arm in self.study.arms if arm != self.study.reference]
        found = differences_of({(arm, self.study.reference): self._pairs(task, arm) for arm in others})
        return {arm: difference for (arm, _), difference in found.items()}

    def pair_differences(self, task: str) -> dict[tuple[str, str], Difference]:
        """The study's pairs of arms, with Holm over them."""
        return differences_of({(arm, against): self._pairs(task, arm, against) for arm, against in self.study.pairs})

    def _pairs(self, task: str, arm: str, against: str | None = None) -> list[tuple[float, float]]:
        reference = {line["seed"]: end_of(line) for line in self.reported(task, against or self.study.reference)}
        return [
            (end_of(line), reference[line["seed"]]) for line in self.reported(task, arm) if line["seed"] in reference
        ]

    def over_all_tasks(self, arm: str, against: str | None = None) -> Interval | None:
        """The mean over the tasks without faults of the paired differences, as shares; None where a task is missing or
        diverged."""
        samples = [relative(self._pairs(task, arm, against)) for task in self.study.clean_tasks]
        if not all(samples) or not all(math.isfinite(value) for sample in samples for value in sample):
            return None
        return mean_of_means_interval(samples)

    def widths(self, task: str) -> dict[str, dict[str, Width | None]]:
        """Arm → what it is measured against → the range of good rates."""
        every = {
            arm: self.by_rate(task, arm)
            for arm in self.study.arms
            if self.study.source_of(self.study.arms[arm]) is None
        }
        every = {arm: losses for arm, losses in every.items() if losses}
        lowest = min((loss for losses in every.values() for loss in losses.values()), default=math.inf)
        return {
            arm: {
                **{f"within {100 * share:g} % of its own best": good_range(losses, share) for share in WITHIN},
                f"within {100 * WITHIN[-1]:g} % of the best of all": good_range(losses, WITHIN[-1], lowest),
            }
            for arm, losses in every.items()
        }

    def steps_to_target(self) -> dict[str, list[float]]:
        """Arm → steps until it is where the reference ends, as a share of the budget, for each clean task, seed."""
        times: dict[str, list[float]] = {arm: [] for arm in self.study.arms}
        for task in self.study.clean_tasks:
            ends = [end for end in self.ends(task, self.study.reference) if math.isfinite(end)]
            if not ends:
                continue
            mean = statistics.fmean(ends)
            for seed in self.study.seeds.to_report:
                for arm, found in times.items():
                    line = next((line for line in self.reported(task, arm) if line["seed"] == seed), None)
                    steps = math.inf
                    if line is not None:
                        steps = steps_to(line["curve"]["evaluations"], mean + TARGET * abs(mean))
                        steps /= line["planned_steps"]
                    found.append(steps if steps > 0 else 1e-9)
        return times

    def profiles(self) -> dict[str, list[float]]:
        """Arm → share of tasks and seeds within τ times the steps of the fastest arm, for each of `TAUS`."""
        times = self.steps_to_target()
        return profile(times, TAUS) if any(times.values()) else {}

    def stopping(self, task: str) -> dict[str, dict[str, Verdict]]:
        """Arm → rule of stopping → what it would have done; only rules that the arm has."""
        full = {line["seed"]: line for line in self.reported(task, self.study.reference)}
        found: dict[str, dict[str, Verdict]] = {}
        for arm in self.study.arms:
            lines = [line for line in self.reported(task, arm) if not line["diverged"]]
            if not lines:
                continue
            rules = {}
            went_on = [line for line in lines if line["stops"]["ended"] is None]
            for name, rule in RULES.items():
                if went_on and (name.startswith("early") or all(line["emotion"] for line in went_on)):
                    rules[name] = verdict([rule(line) for line in went_on])
            if len(went_on) < len(lines):
                rules["own end"] = verdict([ended_by_itself(line, full.get(line["seed"])) for line in lines])
            found[arm] = rules
        return found

    def cost(self, task: str, arm: str) -> Cost | None:
        """What a step costs; None where there are no runs."""
        lines = self.reported(task, arm) or self.of(task, arm, TUNE)
        if not lines:
            return None
        optimizer = [line["optimizer_seconds"] for line in lines if line["optimizer_seconds"] is not None]
        peaks = [line["peak_memory_bytes"] for line in lines if line["peak_memory_bytes"] is not None]
        return Cost(
            step_seconds=statistics.median(line["step_seconds"] for line in lines),
            optimizer_seconds=statistics.median(optimizer) if optimizer else None,
            state_bytes_per_parameter=lines[0]["optimizer_state_bytes"] / max(lines[0]["trainable_parameters"], 1),
            peak_memory_bytes=statistics.median(peaks) if peaks else None,
        )
