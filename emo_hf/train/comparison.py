"""Two runs side by side: the table and the picture."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from emo_hf.cli_errors import UserError
from emo_hf.plot.figure import picture_of
from emo_hf.plot.main import write
from emo_hf.plot.run import Run
from emo_hf.train.config import Job
from emo_hf.train.summary import Summary, number

logger = logging.getLogger(__name__)

PICTURE = "comparison.png"


def show_both(jobs: tuple[Job, Job], summaries: tuple[Summary, Summary]) -> None:
    """Print the table, and draw the picture into the first run's folder."""
    folder = str(jobs[0].training.output_dir)
    print("\n" + columns(comparison_rows(jobs, summaries)))
    print(
        f"Both have trained for {summaries[0].steps:,} steps. One run each says little: emo-hf compare makes a study."
    )
    picture = os.path.join(folder, PICTURE)
    try:
        draw_comparison(summaries, picture, title=os.path.basename(os.path.abspath(folder)))
        print(picture)
    except (UserError, ModuleNotFoundError) as error:  # runs are worth more than their picture
        logger.warning("No picture: %s", error)


def comparison_rows(jobs: Sequence[Job], summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The lines of the table: a name and a value for each run."""
    rows = [
        ("side by side", *(summary.optimizer_and_law for summary in summaries)),
        ("steps", *(f"{summary.steps:,}" for summary in summaries)),
        ("learning rate", *(f"{job.training.learning_rate:g}" for job in jobs)),
        ("schedule", *map(_schedule, jobs, summaries)),
        ("train loss", *(number(summary.train_loss) for summary in summaries)),
    ]
    if all(summary.evaluations for summary in summaries):
        rows.append(("eval loss", *(number(summary.evaluations[-1]["eval_loss"]) for summary in summaries)))
        for measure in summaries[0].measures:
            found = (measure.of(summary.evaluations[-1]) for summary in summaries)
            rows.append((measure.title, *("not measured" if each is None else measure.form(each) for each in found)))
    return [*rows, ("wall time", *(summary.wall_time() for summary in summaries))]


def _schedule(job: Job, summary: Summary) -> str:
    warmup = job.training.get_warmup_steps(summary.steps)
    return str(job.training.lr_scheduler_type.value) + (
        f", warm-up of {warmup} step{'s' if warmup > 1 else ''}" if warmup else ""
    )


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def draw_comparison(summaries: Sequence[Summary], output: str | Path, *, title: str) -> None:
    """Write a picture of both: smoothed training loss, evaluation loss, effective learning rate, emotions.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    runs = [
        Run(name=summary.optimizer_and_law, history=summary.history, law=summary.law, decisions=summary.decisions)
        for summary in summaries
    ]
    write(picture_of(runs, title), Path(output))
