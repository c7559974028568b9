"""Draws a run: loss and decisions, effective learning rate, scalar, coefficient, quiet and the stop signal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emo_hf.emotion.laws import LAWS
from emo_hf.emotion.metrics import NOTES, PREFIX
from emo_hf.recipes import plot_panels
from emo_hf.recipes.decisions import DONE, moments
from emo_hf.recipes.errors import RecipeError, one_line
from emo_hf.recipes.output import last_checkpoint
from emo_hf.recipes.plot_moments import mark_moments
from emo_hf.recipes.plot_panels import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "run.png"


class Run(NamedTuple):
    """What is known of a run.

    Attributes:
        history: the Trainer's log history.
        law: the law that its emotion followed, where that is said.
        decisions: what the law has decided, as [step, text].
    """

    history: list[dict[str, Any]]
    law: str | None = None
    decisions: Sequence[Sequence[Any]] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run `RUN_DIR_OR_CHECKPOINT [--output picture.png]`.

    Args:
        argv: the arguments after `emo-hf plot`; the process's own if None.

    Returns:
        0, or 2 when there is nothing to draw or nothing to draw with (stderr says what).
    """
    parser = argparse.ArgumentParser(prog="emo-hf plot", description="Draw a training run as PNG.", allow_abbrev=False)
    parser.add_argument("run", help="output folder of a run, or one of its checkpoints")
    parser.add_argument("--output", help=f"the picture's file (default: {PICTURE} in that folder)")
    try:
        options = parser.parse_args(argv)
        folder = Path(options.run)
        output = options.output or folder / PICTURE
        run = read_run(folder)
        draw(run.history, output, title=folder.resolve().name, law=run.law, decisions=run.decisions)
    except (RecipeError, OSError) as error:
        print(f"emo-hf plot: {one_line(error)}", file=sys.stderr)
        return 2
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    print(output)
    return 0


def read_run(folder: Path) -> Run:
    """What a run's folder or a checkpoint says.

    Raises:
        RecipeError: if it holds no Trainer's state.
    """
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {str(folder)!r}")
    for place in (folder, last_checkpoint(folder)):
        file = place / "trainer_state.json" if place is not None else None
        if file is not None and file.is_file():
            try:
                return _run_of(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError) as error:
                raise RecipeError(f"{str(file)!r} is not a Trainer's state: {one_line(error)}") from error
    raise RecipeError(f"{str(folder)!r} holds neither trainer_state.json nor a checkpoint: not a Trainer's output")


def _run_of(state: Mapping[str, Any]) -> Run:
    history = list(state["log_history"])
    notes = (state.get("stateful_callbacks") or {}).get(NOTES)
    if not isinstance(notes, dict) or "law" not in notes:
        return Run(history)
    return Run(history, str(notes["law"]), [(int(step), str(text)) for step, text in notes.get("decisions", ())])


def draw(
    history: Sequence[Line],
    output: str | Path,
    *,
    title: str,
    law: str | None = None,
    decisions: Sequence[Sequence[Any]] = (),
) -> None:
    """Write the picture of a run.

    Args:
        history: the Trainer's log history.
        output: file to write, PNG by its name.
        title: name of the run.
        law: the law whose ranges of σ are drawn; None leaves them out.
        decisions: what it has decided, as [step, text].

    Raises:
        RecipeError: if nothing was logged, or matplotlib is not installed.
    """
    figure(history, title=title, law=law, decisions=decisions).savefig(output, dpi=130)


def figure(
    history: Sequence[Line], *, title: str, law: str | None = None, decisions: Sequence[Sequence[Any]] = ()
) -> Figure:
    """The picture as a matplotlib figure: two panels, and three more where an emo optimizer has logged.

    Raises:
        RecipeError: as for `draw`.
    """
    lines = [line for line in history if "loss" in line and "step" in line]
    emo = [line for line in lines if PREFIX + "scalar" in line]
    made = new_figure([3.0, 2.2, 2.2, 1.6, 0.6] if emo else [3.0, 2.2], title)
    if not lines:
        raise RecipeError("no training loss was logged: nothing to draw")
    panels, found = made.axes, moments(decisions, lines[-1]["step"])
    fired = plot_panels.first_stop(emo)
    if fired is None:  # what an evaluation has decided may have come after the last line
        fired = next((moment.step for moment in found if moment.kind == DONE), None)
    plot_panels.loss(panels[0], lines, [line for line in history if "eval_loss" in line and "step" in line], emo)
    plot_panels.learning_rate(panels[1], lines, emo)
    if emo:
        plot_panels.scalar(panels[2], emo, LAWS[law].zones if law in LAWS else ())
        plot_panels.coefficient(panels[3], emo)
        plot_panels.signals(panels[4], emo, fired)
    if fired is not None:
        for panel in panels:
            panel.axvline(fired, color=plot_panels.RED, linewidth=1, linestyle=":", zorder=1)
    curve = plot_panels.series(emo, PREFIX + "loss_short") if emo else plot_panels.series(lines, "loss")
    mark_moments(panels[0], found, curve)
    return made


def new_figure(heights: Sequence[float], title: str) -> Figure:
    """A figure of panels, one below the other, over one axis of steps.

    Raises:
        RecipeError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise RecipeError(f'a picture needs matplotlib: pip install "emo_hf[hf]" ({one_line(error)})') from error
    # Labels that are aligned go further to the left than a layout reckons with.
    made = Figure(figsize=(10, 1.2 + 1.15 * sum(heights)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(made)
    panels = list(made.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    made.suptitle(title, fontsize=13, fontweight="bold")
    made.align_ylabels(panels)
    return made


if __name__ == "__main__":
    sys.exit(main())
