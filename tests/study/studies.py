"""Small studies, and lines of runs that nobody has run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from emo_hf.study.plan import Plan, Run
from emo_hf.study.run_one import named
from emo_hf.study.schema import Study, parse_study

FUNCTION = "tests.study.tiny_task:make"
TASK: dict[str, Any] = {"function": FUNCTION, "steps": 8}
CONSTANT: dict[str, Any] = {"optim": "adamw_torch", "lr_scheduler_type": "constant"}
ARMS: dict[str, Any] = {
    "adamw": {"optim": "adamw_torch", "lr_scheduler_type": "linear"},
    "navi": {"optim": "emonavi", "lr_scheduler_type": "constant"},
}


def content(**changes: Any) -> dict[str, Any]:
    """A study as YAML gives it."""
    return {
        "tasks": {"toy": TASK},
        "arms": ARMS,
        "learning_rates": ["1e-3", 1e-1],  # PyYAML reads 1e-3 as a text
        "seeds": {"tune": 1, "report": 3},
        "reference": "adamw",
        "evaluations": 4,
        **changes,
    }


def study(**changes: Any) -> Study:
    return parse_study(content(**changes), "small")


def quarter(run: Run) -> int:
    """The rate of a run, in quarters of a decade."""
    return round(4 * math.log10(run.rate))


def bowl(run: Run, best: int) -> float:
    """A loss that is 1 at the best rate and rises to both sides."""
    return 1.0 + 0.01 * (quarter(run) - best) ** 2


def line(run: Run, end: float | None, average: float | None = None, **changes: Any) -> dict[str, Any]:
    """What a run would have come to that ended with this loss, and its average with that; None if not finite."""
    curves = {"weights": _curves(end)} | ({"average": _curves(average)} if run.arm.average else {})
    return {
        **named(run),
        "steps": 40, "planned_steps": 40, "losses": [[40, 1.0]], "curves": curves, "chance": None, "extra": None,
        "decisions": [], "fingerprint": {"weights": run.seed, "batches": [run.seed]}, "seconds": 2.0,
        "versions": {"torch": "2.0"}, "device": "CPU", "threads": 1,
        **changes,
    }  # fmt: skip


def _curves(end: float | None) -> dict[str, Any]:
    """The half that tunes ends a little lower, so that the two can be told apart."""
    lower = None if end is None else end - 0.001
    return {"tune": [[0, 2.0], [20, 1.5], [40, lower]], "judge": [[0, 2.0], [20, 1.5], [40, end]]}


def played(small: Study, end: Callable[[Run], Any], **changes: Any) -> tuple[Plan, dict[str, Mapping[str, Any]]]:
    """A study run to its end by a function from a run to the loss, or to the losses of weights and average."""
    lines: dict[str, Mapping[str, Any]] = {}
    plan = Plan(small, lines)
    while plan.open:
        for run in plan.open:
            found = end(run)
            weights, average = found if isinstance(found, tuple) else (found, found)
            lines[run.key] = line(run, weights, average, **changes)
        plan.update(lines)
    return plan, lines
