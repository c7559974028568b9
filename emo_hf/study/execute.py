"""Does the runs of a study, in one or several processes that share a folder.

Every process looks at what is done, claims the first open run that no other has, does it, adds its line, and looks
again. It may be killed at any time: what it was doing is done by another, or by the next call.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emo_hf.cli_errors import UserError
from emo_hf.study.plan import Line, Plan, Run, end_of, matching
from emo_hf.study.results import Results, claim
from emo_hf.study.schema import Study
from emo_hf.study.task import JUDGE

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
PAUSE_FILE = "pause"
"""While the folder holds a file of this name, no run begins."""
LOOKS = 2.0  # seconds between looks at what others do
TRIES = 2
"""So often a run is tried in one call, if it fails."""


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
        """One run a core with one thread; on a GPU one run at a time with all cores, unless said otherwise."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if torch.cuda.is_available():
            return Workers(processes=processes or 1, threads=threads or max(1, cores // (processes or 1)))
        return Workers(processes=processes or max(1, cores // (threads or 1)), threads=threads or 1)


def execute(study: Study, folder: Path, workers: Workers, only: Sequence[str]) -> list[Line]:
    """Do all runs of a study that are not done yet; print a line for each.

    Args:
        study: the study.
        folder: where the runs are kept.
        workers: how many at a time.
        only: as for `matching`.

    Returns:
        The lines of runs that failed.

    Raises:
        UserError: if a line could not be written, or a process ended by itself.
    """
    if workers.processes == 1:
        torch.set_num_threads(workers.threads)
        work(study, folder, only, 1)
    else:
        _side_by_side(study, folder, workers, only)
    plan = Plan(study, results := Results(folder).lines)
    return [results[run.key] for run in matching(plan.open, only) if run.key in results]


def _side_by_side(study: Study, folder: Path, workers: Workers, only: Sequence[str]) -> None:
    for name in THREAD_VARIABLES:
        os.environ[name] = str(workers.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = multiprocessing.get_context("spawn")
    arguments = (study, folder, tuple(only), workers, os.getpid())
    working = [context.Process(target=_worker, args=arguments) for _ in range(workers.processes)]
    try:
        for process in working:
            process.start()
        for process in working:
            process.join()
    finally:
        for process in working:
            if process.is_alive():
                process.terminate()
        for process in working:
            process.join()
    if bad := [process.exitcode for process in working if process.exitcode]:
        raise UserError(f"{len(bad)} of {len(working)} processes ended with code {bad[0]}; the same command goes on")


def _worker(study: Study, folder: Path, only: Sequence[str], workers: Workers, parent: int) -> None:
    """The whole life of a process beside others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(workers.threads)
    try:
        work(study, folder, only, workers.processes)
    except UserError as error:
        print(f"emo-hf compare: {error}", file=sys.stderr, flush=True)
        os._exit(3)


def _end_with(parent: int) -> None:
    """A process whose parent was killed ends too."""
    while os.getppid() == parent:
        time.sleep(LOOKS)
    os._exit(1)


def work(study: Study, folder: Path, only: Sequence[str], processes: int) -> None:
    """Do runs until none is left to do."""
    from emo_hf.study.run_one import named, perform  # imports transformers

    _be_quiet()
    results = Results(folder)
    plan = Plan(study, results.lines)
    tried: Counter[str] = Counter()

    def attempt(run: Run) -> Line:
        try:
            return perform(run)
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this run and not to the study
            failed = folder / "failed"
            failed.mkdir(exist_ok=True)
            (failed / f"{run.key}.txt").write_text(f"{run.id}\n{traceback.format_exc()}", encoding="utf-8")
            return {**named(run), "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        finally:
            gc.collect()  # Trainers hold themselves in circles

    def do(run: Run) -> bool:
        """Do a run, if no other process has it or has done it; whether this process had it."""
        held = claim(folder, run.key)
        if held is None:
            return False
        with held:
            known = results.read().get(run.key)
            if known is None or "error" in known:
                tried[run.key] += 1
                line = attempt(run)
                results.append(line)
                plan.update(results.lines)
                print(f"{run.id}: {_in_words(line, plan)}; {how_long(plan, results.lines, processes)}", flush=True)
        return True

    while True:
        plan.update(results.read())
        left = [run for run in matching(plan.open, only) if tried[run.key] < TRIES]
        if not left:
            return
        if (folder / PAUSE_FILE).exists() or not any(map(do, left)):
            time.sleep(LOOKS)


def _in_words(line: Line, plan: Plan) -> str:
    if "error" in line:
        return f"failed, {line['error']}"
    ends = {
        each.name: end_of(line, each, JUDGE) for each in plan.study.judged.values() if each.arm.name == line["arm"]
    }
    return (
        ", ".join(f"{name} {end:.4g}" if math.isfinite(end) else f"{name} lost" for name, end in ends.items())
        + f" in {line['seconds']:.0f} s"
    )


def seconds_per_run(lines: Mapping[str, Line]) -> dict[str, float]:
    """Task → mean seconds of its runs that are done."""
    found: dict[str, list[float]] = {}
    for line in lines.values():
        if "error" not in line:
            found.setdefault(line["task"], []).append(line["seconds"])
    return {task: sum(seconds) / len(seconds) for task, seconds in found.items()}


def how_long(plan: Plan, lines: Mapping[str, Line], processes: int) -> str:
    """How many runs are left, and how long they take."""
    known = seconds_per_run(lines)
    usual = sum(known.values()) / len(known) if known else 0.0
    left = {task: plan.later.get(task, 0) for task in plan.study.tasks}
    for run in plan.open:
        left[run.task.name] += 1
    seconds = sum(number * known.get(task, usual) for task, number in left.items()) / processes
    return f"about {sum(left.values())} runs left, {duration(seconds)}"


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _be_quiet() -> None:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.logging.get_logger("transformers").setLevel("ERROR")
