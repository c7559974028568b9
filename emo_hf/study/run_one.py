"""One run, in a process of its own, from its plan to one JSON line."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emo_hf.study.faults import Faults
from emo_hf.study.guards import GUARDS, GuardCallback
from emo_hf.study.outcome import outcome
from emo_hf.study.plan import Run
from emo_hf.study.recorder import AblationCallback, Recorder
from emo_hf.study.trainers import make_trainer
from emo_hf.trainer.registry import register

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy")


def perform(run: Run, runs_file: Path) -> dict[str, Any]:
    """Train and evaluate, and say what came out.

    Args:
        run: the run.
        runs_file: where the line of `run.source` stands, if it has one.

    Returns:
        The line, plain values only.

    Raises:
        StudyError: if something in the study cannot be used.
    """
    register()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="emo-hf-compare-") as folder:
        trainer = make_trainer(run, Path(folder))
        ablation = _ablation(run, runs_file)
        if ablation is not None:
            trainer.add_callback(AblationCallback(ablation))
        faults = None if run.task.faults is None else Faults(run.task.faults, run.seed, trainer)
        guard = None if run.arm.guard is None else GuardCallback(GUARDS[run.arm.guard]())
        recorder = Recorder(trainer, guard)
        for callback in (faults, guard, recorder):  # the recorder looks at what the others have done
            if callback is not None:
                trainer.add_callback(callback)
        setup = time.perf_counter() - began
        trainer.train()
        stepping = time.perf_counter() - began - setup - recorder.evaluation_seconds
        if not recorder.evaluations or recorder.evaluations[-1]["step"] != trainer.state.global_step:
            trainer.evaluate()
        seconds = time.perf_counter() - began
        return {
            "id": run.id,
            "phase": run.phase,
            "task": run.task.name,
            "arm": run.arm.name,
            "rate": run.rate,
            "seed": run.seed,
            "config": run.config(),
            "versions": versions(),
            "machine": machine(),
            **outcome(recorder, faults, trainer.state.global_step, trainer.state.max_steps),
            "seconds": round(seconds, 3),
            "setup_seconds": round(setup, 3),
            "evaluation_seconds": round(recorder.evaluation_seconds, 3),
            "step_seconds": stepping / max(trainer.state.global_step, 1),
            "optimizer_seconds": statistics.median(recorder.optimizer_seconds) if recorder.optimizer_seconds else None,
            "optimizer_state_bytes": recorder.state_bytes,
            "peak_memory_bytes": peak_memory(),
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }


def _ablation(run: Run, runs_file: Path) -> str | None:
    law = run.arm.law
    if law is None or ":" not in law:
        return None
    if run.source is None:
        return law
    if law.startswith("replay:"):
        return f"replay:{runs_file}#{run.source}"
    lines = [json.loads(text) for text in runs_file.read_text(encoding="utf-8").splitlines() if run.source in text]
    source = [line for line in lines if line["id"] == run.source][-1]
    if not source.get("emotion"):
        raise ValueError(f"arms.{run.arm.name}: {law!r} needs an arm with an emotion")
    return f"constant:{source['emotion']['coefficient']['mean']:.6g}"


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "emo_hf": _emo_hf_version()}
    installed = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    return found | installed


def _emo_hf_version() -> str:
    import emo_hf

    return emo_hf.__version__


def machine() -> dict[str, Any]:
    """What it ran on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU"
    return {"device": device, "system": platform.system(), "threads": torch.get_num_threads()}


def peak_memory() -> int | None:
    """The most memory that this process has had: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # not on this system
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def child(run: Run, runs_file: str, result: str, log: str, threads: int, lifeline: Any) -> None:
    """The whole life of a process that does one run.

    Args:
        run: the run.
        runs_file: as for `perform`.
        result: the file to write the line to, at once and whole.
        log: the file for whatever is printed.
        threads: how many threads torch may use.
        lifeline: a connection whose other end closes when the parent dies, and this process with it.
    """
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    _be_quiet()
    try:
        line: Mapping[str, Any] = perform(run, Path(runs_file))
    except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this run and not to the study
        traceback.print_exc()
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        line = {**failed(run, text), "config": run.config()}
    part = Path(result + ".part")
    part.write_text(json.dumps(line, allow_nan=False), encoding="utf-8")
    part.replace(result)


def failed(run: Run, text: str) -> dict[str, Any]:
    """The line of a run that came to nothing."""
    return {
        "id": run.id,
        "phase": run.phase,
        "task": run.task.name,
        "arm": run.arm.name,
        "rate": run.rate,
        "seed": run.seed,
        "error": text,
    }


def _die_with_parent(lifeline: Any) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _be_quiet() -> None:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
