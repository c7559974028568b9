"""From the lines of a study's runs to what is said about them: numbers that tests can check, no text, no pictures."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emo_hf.study.plan import DECADE, HALF, Line, Plan, end_of, loss_at_rate
from emo_hf.study.schema import Judged, Study, TaskSpec
from emo_hf.study.statistics import Interval, holm, over_seeds, over_tasks, paired_p, relative
from emo_hf.study.task import JUDGE

SIGNIFICANT = 0.05
WRONG = {"÷ 10": -DECADE, "÷ 3": -HALF, "× 3": HALF, "× 10": DECADE}
"""Rates that are wrong, by how many quarters of a decade."""
FALSE_ALARM = 0.01


@dataclass(frozen=True, kw_only=True)
class Result:
    """A judged arm on a task, on fresh seeds at its tuned rate.

    Attributes:
        quarter: the tuned rate, in quarters of a decade.
        at_edge: whether the best rate has none beside it that is worse, so that a better one may lie beyond.
        runs, lost: how many, and how many of them have come to nothing; those are in no mean.
        ends: the losses of the others.
        difference: to the reference, over the pairs in which neither is lost, as a share of its mean loss; None
            without such a pair, or for the reference itself.
        clear: whether the p-value of the paired t-test, by Holm over the arms of the task, is below 0.05.
    """

    quarter: int
    at_edge: bool
    runs: int
    lost: int
    ends: Sequence[float]
    difference: Interval | None
    clear: bool


@dataclass(frozen=True, kw_only=True)
class Stops:
    """What an arm that ends its runs itself has saved and lost on a task.

    Attributes:
        runs, stopped: how many runs, and how many of them it ended.
        saved: share of the steps that were not taken, as a mean over all runs.
        false_alarms: how many of those it ended more than 1 % above the reference's full run of the same seed.
    """

    runs: int
    stopped: int
    saved: float
    false_alarms: int


class Analysis:
    """Everything that can be said of a study's runs: key → line, of which those of other studies are left out."""

    def __init__(self, study: Study, lines: Mapping[str, Line]) -> None:
        self.study = study
        self.plan = Plan(study, lines)
        self.judged = study.judged
        self.reference = self.judged[study.reference]
        self.tuned_tasks = [task for task in study.tasks.values() if task.rates_of is None]
        self.done = [(run, line) for run in self.plan.runs() if (line := self.plan.line(run)) is not None]
        self.lines = [line for _, line in self.done]
        self.failed = [line for run in self.plan.open if (line := lines.get(run.key)) is not None]
        self.missing = len(self.plan.open) + sum(self.plan.later.values())

    def ends(self, task: TaskSpec, judged: Judged) -> dict[int, float]:
        """Fresh seed → the loss at the end, infinite where the run is lost."""
        return {line["seed"]: end_of(line, judged, JUDGE) for line in self.plan.reported(task, judged)}

    def differences(self, task: TaskSpec, judged: Judged, against: Judged) -> list[float]:
        """To another arm, by seed, where neither is lost."""
        return _paired(self.ends(task, judged), self.ends(task, against))

    def results(self, task: TaskSpec) -> dict[str, Result]:
        """Judged arm → its result, where it has been run on fresh seeds."""
        others = {name: judged for name, judged in self.judged.items() if judged is not self.reference}
        differences = {name: self.differences(task, judged, self.reference) for name, judged in others.items()}
        p_values = {name: p for name, values in differences.items() if (p := paired_p(values)) is not None}
        adjusted = holm(p_values)
        found = {}
        for name, judged in self.judged.items():
            ends, quarter = self.ends(task, judged), self.plan.rate(task, name)
            if ends and quarter is not None:
                tried = self.losses(self.study.tasks[task.rates_of or task.name], judged)
                known = [end for end in ends.values() if math.isfinite(end)]
                found[name] = Result(
                    quarter=quarter,
                    at_edge=not {quarter - 1, quarter + 1} <= tried.keys(),
                    runs=len(ends),
                    lost=len(ends) - len(known),
                    ends=known,
                    difference=over_seeds(values) if (values := differences.get(name)) else None,
                    clear=adjusted.get(name, 1.0) < SIGNIFICANT,
                )
        return found

    def losses(self, task: TaskSpec, judged: Judged) -> dict[int, float]:
        """Rate → mean loss of the tuning seeds on the half that judges, by which no rate was chosen."""
        return self.plan.losses(task, judged, JUDGE)

    def difference(self, judged: Judged, against: Judged) -> tuple[Interval | None, int]:
        """The mean over tasks of the difference to another arm, and over how many tasks."""
        samples = [self.differences(task, judged, against) for task in self.tuned_tasks]
        known = [sample for sample in samples if sample]
        return (over_tasks(known) if known else None), len(known)

    def lost(self, judged: Judged) -> tuple[int, int]:
        """How many runs of an arm are lost, and of how many, on the tasks that have rates of their own."""
        ends = [end for task in self.tuned_tasks for end in self.ends(task, judged).values()]
        return sum(map(math.isinf, ends)), len(ends)

    def wrong(self, judged: Judged, by: int) -> tuple[float, int]:
        """What a rate costs that is wrong by so many quarters of a decade, against the arm's own best rate.

        Returns:
            The mean over tasks, as a share of the loss at the best rate; and on how many tasks a run was lost there,
            which are not in the mean.
        """

        def of_task(task: TaskSpec) -> float:
            quarter, losses = self.plan.rate(task, judged.name), self.losses(task, judged)
            if quarter is None or quarter not in losses:
                return math.nan
            return _more(loss_at_rate(losses, quarter + by), losses[quarter])

        return self._mean_cost(of_task)

    def untuned(self, judged: Judged) -> tuple[float, int]:
        """The mean loss over half a decade on either side of the reference's best rate, against the reference at that
        rate: mean over tasks, and on how many a run was lost there.
        """

        def of_task(task: TaskSpec) -> float:
            near = self.plan.rate(task, self.reference.name)
            if near is None or judged.arm.learning_rates:  # a rate of another kind
                return math.nan
            losses = self.losses(task, judged)
            around = statistics.fmean(loss_at_rate(losses, near + by) for by in (-HALF, 0, HALF))
            return _more(around, self.losses(task, self.reference).get(near, math.nan))

        return self._mean_cost(of_task)

    def _mean_cost(self, of_task: Callable[[TaskSpec], float]) -> tuple[float, int]:
        """Of costs that are infinite where a run was lost, and NaN where none was made."""
        known = [cost for cost in map(of_task, self.tuned_tasks) if not math.isnan(cost)]
        finite = [cost for cost in known if math.isfinite(cost)]
        return (statistics.fmean(finite) if finite else math.nan), len(known) - len(finite)

    def harm(self, task: TaskSpec, judged: Judged) -> tuple[Interval | None, int]:
        """What a task costs an arm against the twin whose rates it takes, by seed; and how many runs were lost."""
        twin = self.study.tasks[str(task.rates_of)]
        ends = self.ends(task, judged)
        values = _paired(ends, self.ends(twin, judged))
        return (over_seeds(values) if values else None), sum(map(math.isinf, ends.values()))

    def stops(self, task: TaskSpec, judged: Judged) -> Stops | None:
        """What an arm that ends its runs itself has saved; None for arms that do not, or have not run."""
        lines = self.plan.reported(task, judged)
        if judged.arm.self_stop != "stop" or not lines:
            return None
        full = self.ends(task, self.reference)
        ended = [line for line in lines if line["steps"] < line["planned_steps"]]
        above = [_more(end_of(line, judged, JUDGE), full.get(line["seed"], math.nan)) for line in ended]
        return Stops(
            runs=len(lines),
            stopped=len(ended),
            saved=statistics.fmean(1 - line["steps"] / line["planned_steps"] for line in lines),
            false_alarms=sum(share > FALSE_ALARM for share in above),
        )

    def decisions(self, judged: Judged) -> Counter[str]:
        """Kind → how often it was decided in all runs on fresh seeds."""
        lines = [line for task in self.study.tasks.values() for line in self.plan.reported(task, judged)]
        return Counter(note["kind"] for line in lines for note in line["decisions"])

    def extra(self, task: TaskSpec, judged: Judged) -> dict[str, float]:
        """What the task has counted itself, as means over the fresh seeds."""
        lines = [line["extra"] for line in self.plan.reported(task, judged) if line["extra"]]
        numbers = {key for extra in lines for key, value in extra.items() if isinstance(value, (int, float))}
        return {key: statistics.fmean(extra[key] for extra in lines) for key in sorted(numbers)}

    def pairing_problems(self) -> list[str]:
        """What should have been the same for all arms of a task and a seed, and was not."""
        problems = []
        seen: dict[tuple[str, int], tuple[str, Line]] = {}
        for run, line in self.done:
            name, first = seen.setdefault((run.task.rates_of or run.task.name, run.seed), (run.id, line))
            ours, theirs = line["fingerprint"], first["fingerprint"]
            if ours["weights"] != theirs["weights"]:
                problems.append(f"{run.id} and {name} had different initial weights")
            if any(one != other for one, other in zip(ours["batches"], theirs["batches"], strict=False)):
                problems.append(f"{run.id} and {name} had different data, or another order")
        return problems


def _paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Relative differences by seed, where neither run is lost."""
    both = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return relative([pair for pair in both if all(map(math.isfinite, pair))])


def _more(loss: float, than: float) -> float:
    return (loss - than) / abs(than) if math.isfinite(than) and than else math.nan
