"""`emo-hf compare STUDY.yaml --output_dir FOLDER`: plan, run, go on after a kill, report."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emo_hf.study.errors import StudyError
from emo_hf.study.estimate import in_words, probe_runs, seconds_from_probe, seconds_left, seconds_per_run
from emo_hf.study.execute import Workers, execute
from emo_hf.study.plan import REPORT, TUNE, Line, Run, best_rates, matching, planned_counts, report_runs, tune_runs
from emo_hf.study.progress import Progress
from emo_hf.study.results import OneAtATime, Results
from emo_hf.study.specification import Study
from emo_hf.study.study import read_study

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `STUDY.yaml --output_dir FOLDER`.

    Args:
        argv: the arguments after `emo-hf compare`; the process's own if None.

    Returns:
        0 when the study is complete; 1 when runs have failed; 2 when something in it cannot be used (stderr says
        what); 130 when it was interrupted, after which the same command goes on.
    """
    try:
        options = parser().parse_args(argv)
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    try:
        return _compare(options)
    except StudyError as error:
        print(f"emo-hf compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("emo-hf compare: interrupted; the same command goes on with the runs that are left", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="emo-hf compare",
        description="Compare optimizers, laws and schedules on your tasks. Runs that are done are not repeated: the "
        "same command goes on where it was cut off.",
        allow_abbrev=False,
    )
    made.add_argument("study", type=Path, help="YAML file with tasks, arms, learning_rates, seeds and reference")
    made.add_argument("--output_dir", type=Path, required=True, help="folder for runs.jsonl and the report")
    made.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="only runs whose id, task/arm/rate/seed, holds this",
    )
    made.add_argument(
        "--dry-run", action="store_true", help="say how many runs there are and about how long they take"
    )
    made.add_argument("--report", action="store_true", help="write the report from the runs that are there")
    made.add_argument("--processes", type=_at_least_one, help="runs at a time (default: one for each core)")
    made.add_argument("--threads", type=_at_least_one, help="threads of each run (default: cores by processes)")
    return made


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is wanted, got {text!r}")
    return int(text)


def _compare(options: argparse.Namespace) -> int:
    study = read_study(options.study)
    folder: Path = options.output_dir
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"output_dir must be a folder, got the file {str(folder)!r}")
    if options.report:
        return _report(study, Results(folder), folder)
    _check(study)
    workers = Workers.choose(options.processes, options.threads)
    folder.mkdir(parents=True, exist_ok=True)
    lock = OneAtATime(folder)
    try:
        results = Results(folder)
        if options.dry_run:
            _say_how_long(study, results, workers, options.only)
            return 0
        (folder / "study.yaml").write_bytes(options.study.read_bytes())
        failures = _run(study, results, folder, workers, options.only)
        code = _report(study, results, folder)
        if failures:
            what = "1 run" if len(failures) == 1 else f"{len(failures)} runs"
            print(f"{what} failed; see {folder / 'failed'}. The same command tries again.")
        return 1 if failures else code
    finally:
        lock.release()


def _check(study: Study) -> None:
    """Find what is wrong with any arm on any task before the first run begins."""
    from emo_hf.study.trainers import check, check_law
    from emo_hf.trainer.registry import register

    register()
    for arm in study.arms.values():
        check_law(arm, study.arms)
    first: dict[tuple[str, str], Run] = {}
    everywhere = {(task, arm): 1.0 for task in study.tasks for arm in study.arms}
    report = [run for following in (False, True) for run in report_runs(study, everywhere, following=following)]
    for run in [*tune_runs(study), *report]:
        first.setdefault((run.task.name, run.arm.name), run)
    with tempfile.TemporaryDirectory(prefix="emo-hf-compare-") as folder:
        for run in first.values():
            check(run, Path(folder))


def _placeholders(study: Study) -> dict[tuple[str, str], float]:
    """Any rate for each arm, to count runs whose rate is not known yet."""
    return {(task, name): study.rates_of(arm)[0] for task in study.tasks for name, arm in study.arms.items()}


def _run(study: Study, results: Results, folder: Path, workers: Workers, only: Sequence[str]) -> list[Line]:
    """Tune, then report, then the arms that follow others."""

    def left(runs: Sequence[Run]) -> list[Run]:
        return [run for run in matching(runs, only) if results.done(run) is None]

    def of_stage(stage: int) -> list[Run]:
        if stage == 0:
            return left(tune_runs(study))
        return left(report_runs(study, best_rates(study, results.lines), following=stage == 2))

    def later(stage: int) -> list[Run]:
        stages = [report_runs(study, _placeholders(study), following=following) for following in (False, True)]
        return [run for runs in stages[stage:] for run in matching(runs, only) if results.done(run) is None]

    progress = Progress(of_stage(0), later(0), workers.processes, list(results.lines.values()))
    failures: list[Line] = []
    try:
        for stage in range(3):
            runs = of_stage(stage)
            progress.replan(runs, later(stage))
            failures += execute(runs, results, folder, workers, progress)
    finally:
        progress.close()
    return failures


def _report(study: Study, results: Results, folder: Path) -> int:
    if not results.lines:
        raise StudyError(f"there are no runs in {str(folder)!r} to report on")
    from emo_hf.study.report import write_report  # matplotlib and scipy: not before they are needed

    for file in write_report(study, results.lines, folder):
        print(file)
    return 0


def _say_how_long(study: Study, results: Results, workers: Workers, only: Sequence[str]) -> None:
    counts = planned_counts(study)
    print(f"{counts[TUNE] + counts[REPORT]} runs in all: {counts[TUNE]} tune, {counts[REPORT]} report")
    every = tune_runs(study)
    best = {**_placeholders(study), **best_rates(study, results.lines)}
    for following in (False, True):
        every += report_runs(study, best, following=following)
    runs = [run for run in matching(every, only) if results.done(run) is None]
    print(f"{len(runs)} of them are left to do{' under --only' if only else ''}")
    if not runs:
        return
    known = seconds_per_run(results.lines.values())
    unknown = sorted({run.task.name for run in runs} - known.keys())
    if unknown:
        print(f"trying a few steps of {', '.join(unknown)} …")
        known |= _probed(study, unknown, runs, workers.threads)
    for task in study.tasks:
        if task in known:
            print(f"  {task}: {in_words(known[task])} a run")
    left = seconds_left(runs, known, workers.processes)
    with_what = f"{workers.processes} at a time with {workers.threads} threads each"
    print(f"time for all of them: {in_words(left)}, {with_what}")


def _probed(study: Study, tasks: Sequence[str], runs: Sequence[Run], threads: int) -> dict[str, float]:
    """Task → seconds a run, from a few steps of it, done as a run is."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="emo-hf-compare-") as scratch:
        results = Results(Path(scratch))
        probes = probe_runs(study, tasks)
        silent = Progress(probes, [], 1, [], shown=False)
        execute(probes, results, Path(scratch), Workers(processes=1, threads=threads), silent)
        silent.close()
        for probe in probes:
            line = results.lines[probe.id]
            if "error" in line:
                raise StudyError(f"tasks.{probe.task.name}: {line['error']}")
            run = next(run for run in runs if run.task.name == probe.task.name)
            seconds = seconds_from_probe(run, line)
            if seconds is not None:
                found[probe.task.name] = seconds
    return found


if __name__ == "__main__":
    sys.exit(main())
