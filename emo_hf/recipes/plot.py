"""Draws a run: loss, effective learning rate, scalar, coefficient, and where quiet and the stop signal stood."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_hf.emotion.law import Zone
from emo_hf.emotion.laws import LAWS
from emo_hf.emotion.metrics import NOTES, PREFIX
from emo_hf.recipes.errors import RecipeError, one_line
from emo_hf.recipes.output import last_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "run.png"

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#1f5fa8", "#e07b1a", "#2a8f5b", "#c23b3b", "#8a8f98"
_OTHERS = ("#7a4fb5", "#0f9aa8", "#b5497f", "#8c6d1f", "#4d4d4d")
_ZONE_COLORS = {"brake": "#fbe3e3", "boost": "#e2f3e8", "quiet": "#f1f2f4", "slow": "#fdf0dc"}

Line = Mapping[str, Any]


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
        history, law = read_run(folder)
        draw(history, output, title=folder.resolve().name, law=law)
    except (RecipeError, OSError) as error:
        print(f"emo-hf plot: {one_line(error)}", file=sys.stderr)
        return 2
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    print(output)
    return 0


def read_run(folder: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The log history of a run's folder or of a checkpoint, and the law that its emotion followed, where that is said.

    Raises:
        RecipeError: if there is none.
    """
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {str(folder)!r}")
    for place in (folder, last_checkpoint(folder)):
        file = place / "trainer_state.json" if place is not None else None
        if file is not None and file.is_file():
            try:
                state = json.loads(file.read_text(encoding="utf-8"))
                return list(state["log_history"]), _law_of(state)
            except (ValueError, KeyError, TypeError) as error:
                raise RecipeError(f"{str(file)!r} is not a Trainer's state: {one_line(error)}") from error
    raise RecipeError(f"{str(folder)!r} holds neither trainer_state.json nor a checkpoint: not a Trainer's output")


def _law_of(state: Mapping[str, Any]) -> str | None:
    notes = (state.get("stateful_callbacks") or {}).get(NOTES)
    return str(notes["law"]) if isinstance(notes, dict) and "law" in notes else None


def draw(history: Sequence[Line], output: str | Path, *, title: str, law: str | None = None) -> None:
    """Write the picture of a run.

    Args:
        history: the Trainer's log history.
        output: file to write, PNG by its name.
        title: name of the run.
        law: the law whose ranges of σ are drawn; None leaves them out.

    Raises:
        RecipeError: if nothing was logged, or matplotlib is not installed.
    """
    figure(history, title=title, law=law).savefig(output, dpi=130)


def figure(history: Sequence[Line], *, title: str, law: str | None = None) -> Figure:
    """The picture as a matplotlib figure: two panels, and three more where an emo optimizer has logged.

    Raises:
        RecipeError: as for `draw`.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise RecipeError(f'a picture needs matplotlib: pip install "emo_hf[hf]" ({one_line(error)})') from error
    lines = [line for line in history if "loss" in line and "step" in line]
    if not lines:
        raise RecipeError("no training loss was logged: nothing to draw")
    emo = [line for line in lines if PREFIX + "scalar" in line]
    heights = [3.0, 2.2, 2.2, 1.6, 0.6] if emo else [3.0, 2.2]
    # Labels that are aligned go further to the left than a layout reckons with.
    made = Figure(figsize=(10, 1.2 + 1.15 * sum(heights)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(made)
    panels = list(made.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    _loss(panels[0], lines, [line for line in history if "eval_loss" in line and "step" in line], emo)
    _learning_rate(panels[1], lines, emo)
    if emo:
        _scalar(panels[2], emo, LAWS[law].zones if law in LAWS else ())
        _coefficient(panels[3], emo)
        _signals(panels[4], emo)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    fired = _first_stop(emo)
    if fired is not None:
        for panel in panels:
            panel.axvline(fired, color=_RED, linewidth=1, linestyle=":", zorder=1)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    made.suptitle(title, fontsize=13, fontweight="bold")
    made.align_ylabels(panels)
    return made


def _series(lines: Sequence[Line], name: str) -> tuple[list[int], list[float]]:
    present = [line for line in lines if name in line]
    return [line["step"] for line in present], [float(line[name]) for line in present]


def _legend(panel: Axes) -> None:
    panel.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, fontsize=8.5, borderaxespad=0)


def _note(panel: Axes, height: float, text: str, transform: Any) -> None:
    panel.text(1.01, height, text, transform=transform, va="center", fontsize=8.5, color="#444")


def _loss(panel: Axes, lines: Sequence[Line], evaluations: Sequence[Line], emo: Sequence[Line]) -> None:
    marker = "o" if len(lines) == 1 else None
    panel.plot(*_series(lines, "loss"), color=_GREY, linewidth=1.2, marker=marker, label="training loss")
    if emo:
        panel.plot(*_series(emo, PREFIX + "loss_short"), color=_ORANGE, linewidth=1.4, label="short average")
        panel.plot(*_series(emo, PREFIX + "loss_long"), color=_BLUE, linewidth=1.8, label="long average")
    if evaluations:
        panel.plot(
            *_series(evaluations, "eval_loss"),
            color=_GREEN, marker="D", markersize=5, linewidth=1.2, linestyle="--", label="evaluation loss",
        )  # fmt: skip
    panel.set_ylabel("loss")
    panel.grid(axis="y", alpha=0.25)
    _legend(panel)


def _learning_rate(panel: Axes, lines: Sequence[Line], emo: Sequence[Line]) -> None:
    steps, plain = _series(lines, "learning_rate")
    groups = _distinct_groups(emo)
    for (names, (at, values)), color in zip(groups, (_ORANGE, *_OTHERS), strict=False):
        label = "effective" + (f": {', '.join(names)}" if names else "")
        panel.plot(at, values, color=color, linewidth=1.5, label=label)
    # Groups may be orders of magnitude apart (LoRA+); the tail of a schedule that ends at 0 shall not decide it.
    peaks = [peak for _, (_, values) in groups if (peak := max(values, default=0.0)) > 0]
    unit, label = 1.0, "plain learning rate"
    if peaks and max(plain, default=0.0) > 100 * max(peaks):  # v3.9, say, of whose rates it is the scale
        unit = 10.0 ** round(math.log10(max(peaks) / max(plain)))
        label = f"plain learning rate × {unit:g}"
    shown = [unit * value for value in plain]
    panel.plot(steps, shown, color=_BLUE, linewidth=1.3, linestyle="--", label=label, zorder=1.5)
    if peaks and max(peaks) / min(peaks) > 5:
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panel.set_ylabel("learning rate")
    panel.grid(axis="y", alpha=0.25)
    _legend(panel)


def _distinct_groups(emo: Sequence[Line]) -> list[tuple[list[str], tuple[list[int], list[float]]]]:
    """Effective learning rates per parameter group, groups that went the same way drawn once under all their names."""
    prefix = PREFIX + "effective_lr/"
    names = dict.fromkeys(name for line in emo for name in line if name.startswith(prefix))
    if not names:
        return [([], _series(emo, PREFIX + "effective_lr"))] if emo else []
    found: list[tuple[list[str], tuple[list[int], list[float]]]] = []
    for name in names:
        series = _series(emo, name)
        for labels, known in found:
            if known == series:
                labels.append(name.removeprefix(prefix))
                break
        else:
            found.append(([name.removeprefix(prefix)], series))
    return found


def _scalar(panel: Axes, emo: Sequence[Line], zones: Sequence[Zone]) -> None:
    for zone in zones:
        panel.axhspan(zone.low, zone.high, color=_ZONE_COLORS[zone.kind], linewidth=0, zorder=0)
        _note(panel, (zone.low + zone.high) / 2, zone.what, panel.get_yaxis_transform())
    panel.plot(*_series(emo, PREFIX + "scalar"), color=_BLUE, linewidth=1.5, label="scalar")
    panel.set_ylim(-1, 1)
    edges = sorted({-1.0, 1.0, *(edge for zone in zones for edge in (zone.low, zone.high))})
    panel.set_yticks(edges if zones else [-1, -0.5, 0, 0.5, 1])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    panel.set_ylabel("scalar σ")


def _coefficient(panel: Axes, emo: Sequence[Line]) -> None:
    steps, low = _series(emo, PREFIX + "coefficient_min")
    _, high = _series(emo, PREFIX + "coefficient_max")
    panel.fill_between(steps, low, high, color=_ORANGE, alpha=0.25, linewidth=0, label="min to max between logs")
    panel.plot(*_series(emo, PREFIX + "coefficient_mean"), color=_ORANGE, linewidth=1.5, label="mean between logs")
    panel.axhline(1, color=_GREY, linewidth=0.8, zorder=0)
    panel.set_ylim(0, 1.05 * max(high) if high and max(high) > 0 else 1.0)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panel.set_ylabel("coefficient c")
    _legend(panel)


def _signals(panel: Axes, emo: Sequence[Line]) -> None:
    for row, (name, color) in enumerate((("should_stop", _RED), ("quiet", _BLUE))):
        spans = _spans(emo, PREFIX + name)
        panel.broken_barh(spans, (row - 0.35, 0.7), facecolors=color, alpha=0.8)
    panel.set_ylim(-0.5, 1.5)
    panel.set_yticks([])
    fired = _first_stop(emo)
    _note(panel, 1, "quiet", panel.get_yaxis_transform())
    text = "stop signal: never" if fired is None else f"stop signal: from step {fired:,}"
    _note(panel, 0, text, panel.get_yaxis_transform())


def _first_stop(emo: Sequence[Line]) -> int | None:
    return next((line["step"] for line in emo if line.get(PREFIX + "should_stop") == 1), None)


def _spans(emo: Sequence[Line], name: str) -> list[tuple[int, int]]:
    """(start, length) of the stretches between log lines at whose end a flag stood."""
    steps, values = _series(emo, name)
    starts = [0, *steps[:-1]]
    return [(start, step - start) for start, step, value in zip(starts, steps, values, strict=True) if value == 1]


if __name__ == "__main__":
    sys.exit(main())
