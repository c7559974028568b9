"""Does the runs of a study in processes of their own, and goes on where an earlier call was cut off."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from emo_hf.study.plan import Line, Run
from emo_hf.study.progress import Progress
from emo_hf.study.results import Results
from emo_hf.study.run_one import child, failed

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many runs are done at a time, and with how many threads each.

    Attributes:
        processes: runs at a time.
        threads: threads of each.
    """

    processes: int
    threads: int

    @staticmethod
    def choose(processes: int | None, threads: int | None) -> Workers:
        """One run a core with one thread each; on a GPU one run at a time with all cores, unless said otherwise."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if torch.cuda.is_available():
            chosen = processes or 1
            return Workers(processes=chosen, threads=threads or max(1, cores // chosen))
        if processes is None:
            processes = max(1, cores // (threads or 1))
        return Workers(processes=processes, threads=threads or max(1, cores // processes))


@dataclass
class _Job:
    run: Run
    process: Any
    result: Path
    log: Path
    lifeline: Any
    began: float = field(default_factory=time.monotonic)


def execute(runs: Sequence[Run], results: Results, folder: Path, workers: Workers, progress: Progress) -> list[Line]:
    """Do the runs that are not done yet.

    Args:
        runs: in the order in which they begin.
        results: takes up each line as soon as its run ends.
        folder: the study's; what the processes write before they end lies below it.
        workers: how many at a time.
        progress: is told of each run.

    Returns:
        The lines of the runs that failed.
    """
    waiting = [run for run in runs if results.done(run) is None]
    working: list[_Job] = []
    failures: list[Line] = []
    scratch = folder / "running"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    context = _context(workers)
    try:
        while waiting or working:
            while waiting and len(working) < workers.processes:
                working.append(_start(context, waiting.pop(0), results.path, scratch, workers.threads))
            multiprocessing.connection.wait([job.process.sentinel for job in working], timeout=1.0)
            for job in [job for job in working if not job.process.is_alive()]:
                working.remove(job)
                line = _finish(job, folder)
                results.append(line)
                if "error" in line:
                    failures.append(line)
                progress.ended(job.run, line)
            progress.tick()
    finally:
        for job in working:
            job.process.terminate()
        for job in working:
            job.process.join()
        shutil.rmtree(scratch, ignore_errors=True)
    return failures


def _context(workers: Workers) -> Any:
    for name in THREAD_VARIABLES:
        os.environ[name] = str(workers.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A server that has imported everything once: seconds are saved for each run. With CUDA a fork is no clean start.
    if "forkserver" not in multiprocessing.get_all_start_methods() or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emo_hf.study.run_one"])
    return context


def _start(context: Any, run: Run, runs_file: Path, scratch: Path, threads: int) -> _Job:
    name = run.id.replace("/", "__")
    result, log = scratch / f"{name}.json", scratch / f"{name}.log"
    theirs, ours = context.Pipe(duplex=False)
    process = context.Process(
        target=child, args=(run, str(runs_file), str(result), str(log), threads, theirs), name=run.id
    )
    process.start()
    theirs.close()
    return _Job(run, process, result, log, ours)


def _finish(job: _Job, folder: Path) -> Line:
    job.process.join()
    job.lifeline.close()
    if job.result.is_file():
        line: dict[str, Any] = json.loads(job.result.read_text(encoding="utf-8"))
    else:
        code = job.process.exitcode
        said = f"signal {-code}" if code < 0 else f"code {code}"
        line = {**failed(job.run, f"its process ended with {said}"), "config": job.run.config()}
    if "error" in line and job.log.is_file():
        kept = folder / "failed" / job.log.name
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(job.log, kept)
        line["log"] = str(kept.relative_to(folder))
    job.result.unlink(missing_ok=True)
    job.log.unlink(missing_ok=True)
    return line


def steps_of(run: Run, lines: Iterable[Line]) -> int:
    """How many steps a run has, as far as it is known: what its config says shows when one run of the task is done."""
    if run.steps is not None:
        return run.steps
    return next((line["planned_steps"] for line in lines if line.get("task") == run.task.name and "steps" in line), 0)
