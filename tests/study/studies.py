"""Small studies, and lines of runs that nobody has run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emo_hf.study.plan import Run
from emo_hf.study.specification import Study
from emo_hf.study.study import parse_study

FUNCTION = "tests.study.tiny_task:make"

ARMS: dict[str, Any] = {
    "adamw": {"optim": "adamw_torch", "lr_scheduler_type": "linear"},
    "navi": {"optim": "emonavi", "lr_scheduler_type": "constant"},
}


def content(**changes: Any) -> dict[str, Any]:
    """A study as YAML gives it."""
    return {
        "tasks": {"toy": {"function": FUNCTION, "steps": 8}},
        "arms": ARMS,
        "learning_rates": ["1e-3", 1e-2],  # PyYAML reads 1e-3 as a text
        "seeds": {"tune": 1, "report": 3},
        "reference": "adamw",
        "evaluations": 4,
        **changes,
    }


def study(**changes: Any) -> Study:
    return parse_study(content(**changes), "small")


def line(run: Run, end: float | None, **changes: Any) -> Mapping[str, Any]:
    """What a run would have come to that ended with this loss; None if it diverged."""
    return {
        "id": run.id,
        "phase": run.phase,
        "task": run.task.name,
        "arm": run.arm.name,
        "rate": run.rate,
        "seed": run.seed,
        "config": run.config(),
        "versions": {"torch": "2.0"},
        "machine": {"device": "CPU", "system": "Linux", "threads": 1},
        "steps": 40,
        "planned_steps": 40,
        "curve": {"train": [[40, 1.0]], "evaluations": [[0, 2.0], [20, 1.5], [40, end]]},
        "start": 2.0,
        "end": end,
        "best": 1.5 if end is None else min(end, 1.5),
        "best_step": 40,
        "diverged": end is None,
        "metrics": {},
        "emotion": None,
        "stops": {"raw": None, "believed": None, "ended": None},
        "fingerprint": {"weights": run.seed, "first_batch": run.seed, "batches": [run.seed]},
        "seconds": 2.0,
        "setup_seconds": 1.0,
        "evaluation_seconds": 0.3,
        "step_seconds": 0.01,
        "optimizer_seconds": 0.001,
        "optimizer_state_bytes": 800,
        "peak_memory_bytes": 2**30,
        "trainable_parameters": 100,
        **changes,
    }
