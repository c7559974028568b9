"""How long the runs that are left will take, from those that are done or from a few steps of each task."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

from emo_hf.study.plan import Line, Run, end_of
from emo_hf.study.specification import Study

PROBE_STEPS = 12
PROBE = "probe"


def probe_runs(study: Study, tasks: Iterable[str]) -> list[Run]:
    """A very short run of each task, with the reference arm and without faults."""
    from emo_hf.study.plan import tune_runs

    every = tune_runs(study)
    probes = []
    for name in tasks:
        task = study.tasks[name]
        run = next(run for run in every if run.task.name == task.tuned_as and run.arm.name == study.reference)
        clean = dataclasses.replace(task, faults=None)
        probes.append(dataclasses.replace(run, task=clean, steps=PROBE_STEPS, evaluations=1, seed=0, phase=PROBE))
    return probes


def seconds_per_run(lines: Iterable[Line]) -> dict[str, float]:
    """Task → median seconds of its runs that are done."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if "seconds" in line and line.get("phase") != PROBE:
            found.setdefault(str(line["task"]), []).append(float(line["seconds"]))
    return {task: statistics.median(seconds) for task, seconds in found.items()}


def seconds_from_probe(run: Run, probe: Line) -> float | None:
    """What a run will take, judged by a probe of its task; None where nobody knows its number of steps."""
    if run.steps is None:
        return None
    evaluation = float(probe["evaluation_seconds"]) / max(len(probe["curve"]["evaluations"]), 1)
    return (
        float(probe["setup_seconds"]) + run.steps * float(probe["step_seconds"]) + (run.evaluations + 1) * evaluation
    )


def seconds_left(runs: Sequence[Run], known: Mapping[str, float], processes: int) -> float | None:
    """Wall time of the runs; None while nothing is known of any of them."""
    if not known:
        return None
    usual = statistics.fmean(known.values())
    return sum(known.get(run.task.name, usual) for run in runs) / max(min(processes, len(runs)), 1)


def in_words(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return "not known yet"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def outcome_in_words(line: Line) -> str:
    """What came out of a run, for the progress bar."""
    if "error" in line:
        return "failed"
    return "diverged" if line.get("diverged") else f"{end_of(line):.4g}"
