"""The picture of one run: loss and decisions, effective rate, σ, factor, and a strip of signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emo_hf.laws import LAWS
from emo_hf.laws.metrics import PREFIX
from emo_hf.plot import panels
from emo_hf.plot.braking import braked
from emo_hf.plot.colors import BLACK
from emo_hf.plot.decisions import DONE, moments
from emo_hf.plot.errors import PlotError
from emo_hf.plot.labels import label_curves, settle_labels
from emo_hf.plot.moments import mark_moments, mark_spikes
from emo_hf.plot.run import Line, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def is_training(line: Line) -> bool:
    """Whether a log line is one of training: it has a loss, or the metrics of an emotion in somebody's own loop."""
    return "step" in line and ("loss" in line or PREFIX + "scalar" in line)


def figure(run: Run, title: str | None = None) -> Figure:
    """The picture as a matplotlib figure: two panels, and three more where an emotion was logged.

    Args:
        run: the run.
        title: what stands above; its name if None.

    Raises:
        PlotError: if nothing was logged, or matplotlib is not installed.
    """
    history = run.history
    lines = [line for line in history if is_training(line)]
    emo = [line for line in lines if PREFIX + "scalar" in line]
    if not lines:
        raise PlotError("no training loss was logged: nothing to draw")
    strip = braked(run.law, emo)
    made = new_figure([3.0, 2.2, 2.2, 1.6, 0.6 if strip is None else 0.85] if emo else [3.0, 2.2], title or run.name)
    axes, found = made.axes, moments(run.decisions, lines[-1]["step"])
    fired = panels.first_stop(emo)
    if fired is None:  # what an evaluation has decided may have come after the last line
        fired = next((moment.step for moment in found if moment.kind == DONE), None)
    panels.loss(axes[0], lines, [line for line in history if "eval_loss" in line and "step" in line], emo)
    panels.learning_rate(axes[1], lines, emo)
    mark_spikes(axes[0], found)
    labelled = axes[:2]
    if emo:
        panels.scalar(axes[2], emo, LAWS[run.law].zones if run.law in LAWS else ())
        panels.coefficient(axes[3], emo)
        panels.signals(axes[4], emo, fired, strip)
        labelled = [*labelled, axes[3]]
    if fired is not None:
        for panel in axes:
            panel.axvline(fired, color=BLACK, linewidth=1, linestyle=":", zorder=1)
    for panel in labelled:
        label_curves(panel)
    averaged = bool(emo) and any(PREFIX + "loss_short" in line for line in emo)
    curve = panels.series(emo, PREFIX + "loss_short") if averaged else panels.series(lines, "loss")
    mark_moments(axes[0], found, curve)
    settle_labels(made)
    return made


def new_figure(heights: Sequence[float], title: str) -> Figure:
    """A figure of panels, one below the other, over one axis of steps.

    Args:
        heights: of the panels, in units of 1.15 inches.
        title: what stands above them.

    Raises:
        PlotError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        said = " ".join(str(error).split())
        raise PlotError(f'a picture needs matplotlib: pip install "emo_hf[hf]" ({said})') from error
    # Labels that are aligned go further to the left than a layout reckons with.
    made = Figure(figsize=(10, 1.2 + 1.15 * sum(heights)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(made)
    axes = list(made.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    made.suptitle(title, fontsize=13, fontweight="bold")
    made.align_ylabels(axes)
    return made
