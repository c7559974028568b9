"""One run, from its plan to one JSON line: a Trainer, watched while it works."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import math
import platform
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.decision import Note
from emo_hf.study.plan import Run
from emo_hf.study.task import HALVES, TUNE
from emo_hf.study.trainers import Prepared, make_trainer
from emo_hf.trainer.registry import register

PACKAGES = ("torch", "transformers", "accelerate", "peft")
FIRST_BATCHES = 8
"""Of so many batches the content is summed up, to see that two runs had the same data in the same order."""
CURVE_POINTS = 100
WEIGHTS, AVERAGE = "weights", "average"

Metrics = Mapping[str, float]


def perform(run: Run) -> dict[str, Any]:
    """Train and evaluate, and say what came out: the line, plain values only.

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
        **watch.outcome(),
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
    names = {"key": run.key, "task": run.task.name, "arm": run.arm.name}
    return {**names, "rate": run.rate, "seed": run.seed, "phase": run.phase, "config": run.config()}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import emo_hf

    found = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    return {"python": platform.python_version(), "emo_hf": emo_hf.__version__, **found}


class Watch(TrainerCallback):
    """Collects what a run is judged by, and takes the place of the Trainer's own evaluation.

    Every evaluation judges the weights, and their average where one is kept, on both halves of the held-out data. A
    law hears the tuning half only: of the average where there is one, as that is what is saved.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.losses: list[float] = []
        self.curves: dict[str, dict[str, list[list[float | None]]]] = {}
        self.metrics: dict[str, dict[str, dict[str, float | None]]] = {}
        self.notes: list[Note] = []
        self.factors: list[float] = []
        self.skipped: list[int] = []
        self.evaluation_seconds = 0.0
        self.weights = checksum(parameter for _, parameter in sorted(prepared.trainer.model.named_parameters()))
        self.batches: list[int] = []
        self._pending: list[torch.Tensor] = []
        self._trainer, self._measure = prepared.trainer, prepared.measure
        training_step = self._trainer.training_step

        def watched_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            if len(self.batches) < FIRST_BATCHES:
                self.batches.append(checksum(tensors_in(inputs)))
            loss: torch.Tensor = training_step(model, inputs, *args, **kwargs)
            self._pending.append(loss)
            return loss

        self._trainer.training_step, self._trainer.evaluate = watched_step, self._evaluate

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        trainer, began = self._trainer, time.perf_counter()
        optimizer, emo = trainer.optimizer, unwrap(trainer.optimizer)
        trainer.model.eval()
        trainer.optimizer = None  # the Trainer's evaluation would have it show an average
        try:
            with torch.random.fork_rng(), torch.no_grad():
                if emo is not None and emo.keeps_average:
                    heard = self._judge(WEIGHTS)
                    if trainer.state.global_step:
                        heard = self._shown(emo, AVERAGE)
                    else:  # there is no step yet to take an average over
                        self.curves[AVERAGE] = copy.deepcopy(self.curves[WEIGHTS])
                else:  # Schedule-Free has other weights in evaluations
                    heard = self._shown(optimizer, WEIGHTS)
        finally:
            trainer.optimizer = optimizer
        self.evaluation_seconds += time.perf_counter() - began
        metrics = {f"eval_{name}": value for name, value in heard.items()}
        trainer.log(dict(metrics))
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    def _shown(self, optimizer: Any, what: str) -> Metrics:
        """Judge what an optimizer shows in evaluations."""
        if not callable(getattr(optimizer, "eval", None)):
            return self._judge(what)
        optimizer.eval()
        try:
            return self._judge(what)
        finally:
            optimizer.train()

    def _judge(self, what: str) -> Metrics:
        """Measure both halves; gives what the law hears of it."""
        heard: Metrics = {}
        for half in HALVES:
            measured = {key: float(value) for key, value in self._measure(half).items()}
            curve = self.curves.setdefault(what, {}).setdefault(half, [])
            curve.append([self._trainer.state.global_step, finite(measured["loss"])])
            self.metrics.setdefault(what, {})[half] = {key: finite(value) for key, value in measured.items()}
            heard = measured if half == TUNE else heard
        return heard

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.losses.append(float(sum(loss.item() for loss in self._pending)))
        self._pending.clear()
        emo = self._note()
        if emo is not None:
            self.factors.append(emo.decision.coefficient)
            if emo.decision.skip:
                self.skipped.append(state.global_step)
        if control.should_training_stop:
            control.should_evaluate = True  # what it comes to has to be known, wherever it ends

    def _note(self) -> Any:
        """Keep what has been decided since it was last asked: a law keeps only its last ones. Gives who decides."""
        emo = unwrap(self._trainer.optimizer)
        if emo is not None:
            decisions, last = emo.decisions, self.notes[-1] if self.notes else None
            self.notes += decisions[decisions.index(last) + 1 :] if last in decisions else decisions
        return emo

    def outcome(self) -> dict[str, Any]:
        """The part of a line that says how a run went."""
        self._note()  # what was decided by the last evaluation, which a law hears when all callbacks have
        state, factors = self._trainer.state, self.factors
        spread = {"mean": sum(factors) / len(factors), "min": min(factors), "max": max(factors)} if factors else None
        return {
            "steps": state.global_step,
            "planned_steps": state.max_steps,
            "losses": thinned(self.losses, CURVE_POINTS),
            "curves": self.curves,
            "metrics": self.metrics,
            "decisions": [dataclasses.asdict(note) for note in self.notes],
            "factor": spread,
            "skipped": self.skipped,
            "fingerprint": {"weights": self.weights, "batches": self.batches},
        }


def thinned(values: Sequence[float], points: int) -> list[list[float | None]]:
    """[step, mean of the steps up to it] for at most so many stretches of equal length; steps count from 1."""
    size = max(1, math.ceil(len(values) / points))
    stretches = [values[start : start + size] for start in range(0, len(values), size)]
    return [[min((i + 1) * size, len(values)), finite(sum(s) / len(s))] for i, s in enumerate(stretches)]


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a batch, in a fixed order."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for key in sorted(batch, key=str):
            yield from tensors_in(batch[key])
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from tensors_in(item)


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """A number that stands for the content of tensors."""
    value = 0
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(data.numpy().tobytes(), value)
    return value


def finite(value: float) -> float | None:
    """A number as JSON has it: none where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
