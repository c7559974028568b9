"""Two runs side by side: the table and the picture."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from emo_hf.emotion.metrics import PREFIX
from emo_hf.recipes import plot_panels
from emo_hf.recipes.config import Job
from emo_hf.recipes.errors import RecipeError
from emo_hf.recipes.plot import new_figure
from emo_hf.recipes.plot_panels import BLUE, ORANGE, Line
from emo_hf.recipes.summary import Summary, number

logger = logging.getLogger(__name__)

PICTURE = "comparison.png"

SMOOTHING = 0.7
"""Weight of what was before, from log line to log line, in the curves of the training loss."""

_COLORS = (BLUE, ORANGE)


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
    except (RecipeError, OSError) as error:  # runs are worth more than their picture
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
    """Write a picture of both: smoothed training loss, evaluation loss, effective learning rate.

    Raises:
        RecipeError: if matplotlib is not installed.
    """
    made = new_figure([3.0, 3.0, 2.2], title)
    losses, evaluations, rates = made.axes
    for summary, color in zip(summaries, _COLORS, strict=True):
        name = summary.optimizer_and_law
        lines = [line for line in summary.history if "loss" in line and "step" in line]
        steps, values = plot_panels.series(lines, "loss")
        losses.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
        losses.plot(steps, smoothed(values), color=color, linewidth=1.8, label=name)
        measured = [line for line in summary.evaluations if "step" in line]
        at, found = plot_panels.series(measured, "eval_loss")
        last = f"{name}: {found[-1]:.3f} at the end" if found else name
        evaluations.plot(at, found, color=color, linewidth=1.5, marker="o", markersize=4, label=last)
        rates.plot(*_rates(lines), color=color, linewidth=1.5, label=name)
    losses.set_ylabel("training loss")
    evaluations.set_ylabel("evaluation loss")
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for panel in made.axes:
        panel.grid(axis="y", alpha=0.25)
        panel.legend(frameon=False, fontsize=9)
    made.savefig(output, dpi=130)


def smoothed(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential average without a bias towards its beginning."""
    average, total, made = 0.0, 0.0, []
    for value in values:
        average, total = weight * average + (1 - weight) * value, weight * total + (1 - weight)
        made.append(average / total)
    return made


def _rates(lines: Sequence[Line]) -> tuple[list[int], list[float]]:
    """Effective rates of the adapter's or the first group where there is an emotion, else the schedule's."""
    return plot_panels.series(
        [line | {"rate": line["learning_rate"] * line.get(PREFIX + "coefficient", 1.0)} for line in map(dict, lines)],
        "rate",
    )
