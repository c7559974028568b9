"""What faults did to an arm: its runs with them against the same arm's runs without."""

from __future__ import annotations

from dataclasses import dataclass

from emo_hf.study.analysis import Analysis
from emo_hf.study.differences import relative
from emo_hf.study.fault_spec import unclean
from emo_hf.study.plan import Line, end_of
from emo_hf.study.statistics import Interval, mean_interval


@dataclass(frozen=True, kw_only=True)
class Harm:
    """What the faults of a task did to an arm, over the seeds that were run with and without them.

    Attributes:
        runs: how many pairs.
        diverged, clean_diverged: in how many of them the run with, and the one without faults, lost its loss.
        with_faults, without: the losses at the end.
        interval: mean and 95 % bootstrap interval of (with − without) / mean without; None where a run diverged.
        faults, skipped: how many faults there were, and at how many a step was skipped.
        braked, clean: clean steps that were skipped without a cause, and how many clean steps there were.
        braked_in_twin, steps_of_twin: the same of the runs without faults.
    """

    runs: int
    diverged: int
    clean_diverged: int
    with_faults: list[float]
    without: list[float]
    interval: Interval | None
    faults: int
    skipped: int
    braked: int
    clean: int
    braked_in_twin: int
    steps_of_twin: int


def harm(analysis: Analysis, task: str) -> dict[str, Harm]:
    """Arm → what faults did to it; empty for a task without faults."""
    if analysis.study.tasks[task].faults is None:
        return {}
    found = {arm: _pairs(analysis, task, arm) for arm in analysis.study.arms}
    return {arm: _harm(pairs) for arm, pairs in found.items() if pairs}


def _pairs(analysis: Analysis, task: str, arm: str) -> list[tuple[Line, Line]]:
    clean = {line["seed"]: line for line in analysis.reported(analysis.study.tasks[task].tuned_as, arm)}
    return [(line, clean[line["seed"]]) for line in analysis.reported(task, arm) if line["seed"] in clean]


def _harm(pairs: list[tuple[Line, Line]]) -> Harm:
    faulty, clean = [line for line, _ in pairs], [line for _, line in pairs]
    diverged, clean_diverged = (sum(line["diverged"] for line in lines) for lines in (faulty, clean))
    differences = relative([(end_of(line), end_of(twin)) for line, twin in pairs])
    return Harm(
        runs=len(pairs),
        diverged=diverged,
        clean_diverged=clean_diverged,
        with_faults=[end_of(line) for line in faulty if not line["diverged"]],
        without=[end_of(line) for line in clean if not line["diverged"]],
        interval=None if diverged or clean_diverged else mean_interval(differences),
        faults=sum(len(line["faults"]["steps"]) for line in faulty),
        skipped=sum(line["skipped_faults"] for line in faulty),
        braked=sum(line["braked"] for line in faulty),
        clean=sum(_clean_steps(line) for line in faulty),
        braked_in_twin=sum(line.get("braked", 0) for line in clean),  # lines from before there were faults
        steps_of_twin=sum(line["steps"] for line in clean),
    )


def _clean_steps(line: Line) -> int:
    excused = unclean(line["faults"]["steps"], line["faults"]["reach"])
    return sum(step not in excused for step in range(1, line["steps"] + 1))
