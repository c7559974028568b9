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
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emo_hf.cli_errors import UserError, one_line
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
    """How many runs are done at a time, and with how many threads each."""

    processes: int
    threads: int

    @staticmethod
    def choose(processes: int | None, threads: int | None) -> Workers:
        """One run a core with one thread; on a GPU one run at a time with all cores, unless said otherwise."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if torch.cuda.is_available():
            processes, threads = processes or 1, threads or max(1, cores // (processes or 1))
        return Workers(processes=processes or max(1, cores // (threads or 1)), threads=threads or 1)


def execute(study: Study, folder: Path, workers: Workers, only: Sequence[str]) -> list[Line]:
    """Do all runs of a study that are not done yet; print a line for each.

    Args:
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
    os.environ |= {name: str(workers.threads) for name in THREAD_VARIABLES} | {"TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("spawn")
    working = [context.Process(target=_worker, args=(study, folder, only, workers)) for _ in range(workers.processes)]
    for process in working:
        process.start()
    try:
        for process in working:
            process.join()
    finally:
        for process in working:
            process.terminate()
            process.join()
    if bad := [process.exitcode for process in working if process.exitcode]:
        raise UserError(f"{len(bad)} of {len(working)} processes ended with code {bad[0]}; the same command goes on")


def _worker(study: Study, folder: Path, only: Sequence[str], workers: Workers) -> None:
    """The whole life of a process beside others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends this one
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(workers.threads)
    try:
        work(study, folder, only, workers.processes)
    except UserError as error:
        sys.exit(f"emo-hf compare: {error}")


def _end_with_the_parent() -> None:
    """However that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(study: Study, folder: Path, only: Sequence[str], processes: int) -> None:
    """Do runs until none is left to do."""
    _be_quiet()
    results = Results(folder)
    plan = Plan(study, results.lines)
    tried: Counter[str] = Counter()
    while True:
        plan.update(results.read())
        left = [run for run in matching(plan.open, only) if tried[run.key] < TRIES]
        if not left:
            return
        free = () if (folder / PAUSE_FILE).exists() else ((run, claim(folder, run.key)) for run in left)
        run, held = next(((run, held) for run, held in free if held is not None), (left[0], None))
        if held is None:
            time.sleep(LOOKS)
            continue
        with held:
            known = results.read().get(run.key)
            if known is None or "error" in known:  # nobody has done it in the meantime
                tried[run.key] += 1
                line = _attempt(run, folder)
                results.append(line)
                plan.update(results.lines)
                print(f"{run.id}: {_in_words(line, plan)}; {how_long(plan, results.lines, processes)}", flush=True)


def _attempt(run: Run, folder: Path) -> Line:
    from emo_hf.study.run_one import named, perform  # imports transformers

    try:
        return perform(run)
    except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this run and not to the study
        failed = folder / "failed"
        failed.mkdir(exist_ok=True)
        (failed / f"{run.key}.txt").write_text(f"{run.id}\n{traceback.format_exc()}", encoding="utf-8")
        return {**named(run), "error": f"{type(error).__name__}: {one_line(error)}"}
    finally:
        gc.collect()  # Trainers hold themselves in circles


def _in_words(line: Line, plan: Plan) -> str:
    if "error" in line:
        return f"failed, {line['error']}"
    arms = [judged for judged in plan.study.judged.values() if judged.arm.name == line["arm"]]
    ends = {judged.name: end_of(line, judged, JUDGE) for judged in arms}
    said = [f"{name} {end:.4g}" if math.isfinite(end) else f"{name} lost" for name, end in ends.items()]
    return f"{', '.join(said)} in {line['seconds']:.0f} s"


def seconds_per_run(lines: Mapping[str, Line]) -> dict[str, float]:
    """Task → mean seconds of its runs that are done."""
    found: dict[str, list[float]] = {}
    for line in lines.values():
        if "error" not in line:
            found.setdefault(line["task"], []).append(line["seconds"])
    return {task: statistics.fmean(seconds) for task, seconds in found.items()}


def how_long(plan: Plan, lines: Mapping[str, Line], processes: int) -> str:
    """How many runs are left, and how long they take."""
    known = seconds_per_run(lines)
    usual = statistics.fmean(known.values()) if known else 0.0
    left = Counter(plan.later) + Counter(run.task.name for run in plan.open)
    seconds = sum(number * known.get(task, usual) for task, number in left.items()) / processes
    return f"about {left.total()} runs left, {duration(seconds)}"


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
