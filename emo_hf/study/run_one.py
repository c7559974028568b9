"""One run, from its plan to one JSON line."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from emo_hf.study.measure import Watch, finite
from emo_hf.study.plan import Run
from emo_hf.study.trainers import make_trainer
from emo_hf.trainer.registry import register

PACKAGES = ("emo_hf", "torch", "transformers", "accelerate", "peft")


def perform(run: Run) -> dict[str, Any]:
    """Train and evaluate, and say what came out.

    Args:
        run: the run.

    Returns:
        The line, plain values only.

    Raises:
        UserError: if something in the study cannot be used.
    """
    register()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="emo-hf-compare-") as folder:
        prepared = make_trainer(run, Path(folder))
        watch, trainer, task = Watch(prepared), prepared.trainer, prepared.task
        trainer.add_callback(watch)  # the last: it looks at what the others have done
        setup = time.perf_counter() - began
        trainer.train()
    return {
        **named(run),
        **watch.outcome(trainer.state.global_step, trainer.state.max_steps),
        "chance": None if task is None or task.chance is None else finite(task.chance),
        "extra": None if task is None or task.outcome is None else dict(task.outcome()),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "seconds": round(time.perf_counter() - began, 2),
        "setup_seconds": round(setup, 2),
        "evaluation_seconds": round(watch.evaluation_seconds, 2),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def named(run: Run) -> dict[str, Any]:
    """The part of a line that says which run it is."""
    return {
        "key": run.key,
        "task": run.task.name,
        "arm": run.arm.name,
        "rate": run.rate,
        "seed": run.seed,
        "phase": run.phase,
        "config": run.config(),
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import emo_hf

    found = {name: importlib.metadata.version(name) for name in PACKAGES[1:] if importlib.util.find_spec(name)}
    return {"python": platform.python_version(), PACKAGES[0]: emo_hf.__version__, **found}
