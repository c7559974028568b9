"""`emo-hf compare STUDY.yaml --output_dir FOLDER`: plan, run, go on after a kill, report."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from emo_hf.cli_errors import INTERRUPTED, UserError, at_least_one, one_sentence
from emo_hf.study.execute import Workers, execute, how_long, seconds_per_run
from emo_hf.study.plan import Line, Plan, Run, matching
from emo_hf.study.results import Results
from emo_hf.study.schema import Study, read_study

PROBE_STEPS = 12


@one_sentence("emo-hf compare")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `STUDY.yaml --output_dir FOLDER`.

    Returns:
        0 when the study is complete; 1 when runs have failed; 2 when something in it cannot be used (stderr says
        what); 130 when it was interrupted, after which the same command goes on.
    """
    options = parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _compare(options)
    except KeyboardInterrupt:
        print("emo-hf compare: interrupted; the same command goes on with the runs that are left", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="emo-hf compare", allow_abbrev=False,
        description="Compare optimizers, laws and schedules on your tasks. Runs that are done are not repeated: the "
        "same command goes on where it was cut off, and several may work on one folder.",
    )  # fmt: skip
    made.add_argument("study", type=Path, help="YAML file with tasks, arms, learning_rates, seeds and reference")
    made.add_argument("--output_dir", type=Path, required=True, help="folder for runs.jsonl and the report")
    only = "only runs whose id, task/arm/rate/seed, holds this"
    made.add_argument("--only", action="append", default=[], metavar="TEXT", help=only)
    made.add_argument("--dry-run", action="store_true", help="say how many runs are left and about how long they take")
    made.add_argument("--report", action="store_true", help="write the report from the runs that are there")
    made.add_argument("--processes", type=at_least_one, help="runs at a time (default: one for each core)")
    made.add_argument("--threads", type=at_least_one, help="threads of each run (default: 1)")
    return made


def _compare(options: argparse.Namespace) -> int:
    study, folder = read_study(options.study), options.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir must be a folder, got {str(folder)!r}: {error}") from error
    if options.report:
        return _report(study, folder)
    plan = Plan(study, Results(folder).lines)
    check_arms(study, plan)
    workers = Workers.choose(options.processes, options.threads)
    if options.dry_run:
        _say_what_comes(plan, folder, workers, options.only)
        return 0
    failures = execute(study, folder, workers, options.only)
    for line in failures[:10]:
        print(f"failed: {line['task']}/{line['arm']}: {line['error']}; see {folder / 'failed' / line['key']}.txt")
    code = _report(study, folder)
    return 1 if failures else code


def check_arms(study: Study, plan: Plan) -> None:
    """Find what is wrong with any arm on any task before the first run begins."""
    from emo_hf.study.trainers import check
    from emo_hf.trainer.registry import register

    register()
    with tempfile.TemporaryDirectory(prefix="emo-hf-compare-") as folder:
        for task in study.tasks.values():
            for arm in study.arms.values():
                check(plan.first_run(task, arm), Path(folder))


def _report(study: Study, folder: Path) -> int:
    lines = Results(folder).lines
    if not any(run.key in lines for run in Plan(study, lines).runs()):
        raise UserError(f"there are no runs of this study in {str(folder)!r} to report on")
    from emo_hf.study.report import write_report  # matplotlib and scipy: not before they are needed

    for file in write_report(study, lines, folder):
        print(file)
    return 0


def _say_what_comes(plan: Plan, folder: Path, workers: Workers, only: Sequence[str]) -> None:
    lines, runs = dict(Results(folder).lines), matching(plan.open, only)
    for name, run in {run.task.name: run for run in reversed(runs)}.items():
        if name not in seconds_per_run(lines):
            lines[f"probe of {name}"] = _probe(run, workers.threads)
    for name, seconds in sorted(seconds_per_run(lines).items()):
        if name in plan.study.tasks:
            now = sum(run.task.name == name for run in runs)
            print(f"{name}: {now} runs now, about {plan.later[name]} later, {seconds:.0f} s each")
    left = how_long(plan, lines, workers.processes)
    print(f"{left}, {workers.processes} at a time, {workers.threads} threads each")


def _probe(run: Run, threads: int) -> Line:
    """What a run would take, from a few of its steps."""
    import torch

    from emo_hf.study.run_one import perform

    torch.set_num_threads(threads)
    line = perform(dataclasses.replace(run, steps=PROBE_STEPS, evaluations=1))
    steps = run.steps or line["planned_steps"]
    stepping = line["seconds"] - line["setup_seconds"] - line["evaluation_seconds"]
    evaluation = line["evaluation_seconds"] / 2  # at the start and at the end
    seconds = line["setup_seconds"] + stepping * steps / PROBE_STEPS + evaluation * (run.evaluations + 1)
    return {"task": run.task.name, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
