"""The panels of a run's picture, one function each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emo_hf.laws.law import Zone
from emo_hf.laws.metrics import PREFIX
from emo_hf.plot.colors import BLACK, BLUE, DASHES, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from emo_hf.plot.labels import SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUPS = (VERMILLION, PURPLE, GREEN, SKY, ORANGE, BLACK)
_ZONE_COLORS = {"brake": "#f9e3d6", "boost": "#ddf1ea", "quiet": "#f1f2f4", "slow": "#fdf3dc"}

Line = Mapping[str, Any]
Spans = Sequence[tuple[float, float]]


def series(lines: Sequence[Line], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of what was logged under a name."""
    present = [line for line in lines if name in line]
    return [line["step"] for line in present], [float(line[name]) for line in present]


def _note(panel: Axes, height: float, text: str) -> None:
    panel.text(1.012, height, text, transform=panel.get_yaxis_transform(), va="center", fontsize=SIZE, color="#444")


def loss(panel: Axes, lines: Sequence[Line], evaluations: Sequence[Line], emo: Sequence[Line]) -> None:
    """Losses: of training, its averages, of evaluations."""
    steps, values = series(lines, "loss")
    if steps:
        marker = "o" if len(steps) == 1 else None
        panel.plot(steps, values, color=GREY, linewidth=1.1, marker=marker, label="training loss")
    if emo:
        panel.plot(
            *series(emo, PREFIX + "loss_short"),
            color=VERMILLION, linewidth=1.5, linestyle=DASHES[1], label="short average",
        )  # fmt: skip
        panel.plot(*series(emo, PREFIX + "loss_long"), color=BLUE, linewidth=1.9, label="long average")
    if evaluations:
        panel.plot(
            *series(evaluations, "eval_loss"),
            color=GREEN, marker="D", markersize=5, linewidth=1.3, linestyle=DASHES[2], label="evaluation loss",
        )  # fmt: skip
    panel.set_ylabel("loss")
    panel.grid(axis="y", alpha=0.25)


def learning_rate(panel: Axes, lines: Sequence[Line], emo: Sequence[Line]) -> None:
    """The schedule's rate, and the effective one of each group."""
    steps, plain = series(lines, "learning_rate")
    groups = _distinct_groups(emo)
    for i, ((names, (at, values)), color) in enumerate(zip(groups, _GROUPS, strict=False)):
        label = "effective" + (f": {', '.join(names)}" if names else "")
        panel.plot(at, values, color=color, linewidth=1.6, linestyle=DASHES[(0, 2, 3, 4)[i % 4]], label=label)
    # Groups may be orders of magnitude apart (LoRA+); the tail of a schedule that ends at 0 shall not decide it.
    peaks = [peak for _, (_, values) in groups if (peak := max(values, default=0.0)) > 0]
    unit, label = 1.0, "plain learning rate"
    if peaks and max(plain, default=0.0) > 100 * max(peaks):  # v3.9, say, of whose rates it is the scale
        unit = 10.0 ** round(math.log10(max(peaks) / max(plain)))
        label = f"plain learning rate × {unit:g}"
    if steps:
        shown = [unit * value for value in plain]
        panel.plot(steps, shown, color=BLUE, linewidth=1.3, linestyle=DASHES[1], label=label, zorder=1.5)
    if peaks and max(peaks) / min(peaks) > 5:
        from matplotlib.ticker import LogFormatterSciNotation

        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(3, 1)))
        panel.tick_params(axis="y", which="minor", labelsize=7)
    else:
        panel.set_ylim(bottom=0)
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panel.set_ylabel("learning rate")
    panel.grid(axis="y", alpha=0.25)


def _distinct_groups(emo: Sequence[Line]) -> list[tuple[list[str], tuple[list[int], list[float]]]]:
    """Effective learning rates per parameter group, groups that went the same way drawn once under all their names."""
    prefix = PREFIX + "effective_lr/"
    names = dict.fromkeys(name for line in emo for name in line if name.startswith(prefix))
    if not names:
        return [([], series(emo, PREFIX + "effective_lr"))] if emo else []
    found: list[tuple[list[str], tuple[list[int], list[float]]]] = []
    for name in names:
        of_group = series(emo, name)
        for labels, known in found:
            if known == of_group:
                labels.append(name.removeprefix(prefix))
                break
        else:
            found.append(([name.removeprefix(prefix)], of_group))
    return found


def scalar(panel: Axes, emo: Sequence[Line], zones: Sequence[Zone]) -> None:
    """σ over the ranges that the law tells apart."""
    for zone in zones:
        panel.axhspan(zone.low, zone.high, color=_ZONE_COLORS[zone.kind], linewidth=0, zorder=0)
        _note(panel, (zone.low + zone.high) / 2, zone.what)
    panel.plot(*series(emo, PREFIX + "scalar"), color=BLUE, linewidth=1.5, label="scalar")
    panel.set_ylim(-1, 1)
    edges = sorted({-1.0, 1.0, *(edge for zone in zones for edge in (zone.low, zone.high))})
    panel.set_yticks(_apart(edges) if zones else [-1, -0.5, 0, 0.5, 1])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    panel.set_ylabel("scalar σ")


def _apart(edges: Sequence[float]) -> list[float]:
    """Ticks whose labels do not touch: of two that are close the middle."""
    ticks: list[float] = []
    for edge in edges:
        if ticks and edge - ticks[-1] < 0.1:
            ticks[-1] = (ticks[-1] + edge) / 2
        else:
            ticks.append(edge)
    return ticks


def coefficient(panel: Axes, emo: Sequence[Line]) -> None:
    """The factor on the rate."""
    steps, low = series(emo, PREFIX + "coefficient_min")
    _, high = series(emo, PREFIX + "coefficient_max")
    panel.fill_between(steps, low, high, color=ORANGE, alpha=0.3, linewidth=0, label="min to max between logs")
    panel.plot(*series(emo, PREFIX + "coefficient_mean"), color=VERMILLION, linewidth=1.5, label="mean between logs")
    panel.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    panel.set_ylim(0, 1.05 * max(high) if high and max(high) > 0 else 1.0)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panel.set_ylabel("coefficient c")


def signals(panel: Axes, emo: Sequence[Line], fired: int | None, braked: Spans | None) -> None:
    """Where quiet, the stop signal and, of laws that brake, braking stood."""
    stop = "stop signal: never" if fired is None else f"stop signal: from step {fired:,}"
    rows: list[tuple[Spans, str, str]] = [
        (spans(emo, "should_stop"), BLACK, stop),
        (spans(emo, "quiet"), SKY, "quiet"),
    ]
    if braked is not None:
        rows.append((braked, VERMILLION, "braked" if braked else "braked: never"))
    for row, (found, color, text) in enumerate(rows):
        panel.broken_barh(found, (row - 0.35, 0.7), facecolors=color, alpha=0.85)
        _note(panel, row, text)
    panel.set_ylim(-0.5, len(rows) - 0.5)
    panel.set_yticks([])


def first_stop(emo: Sequence[Line]) -> int | None:
    """The first logged step at which the stop signal stood."""
    return next((line["step"] for line in emo if line.get(PREFIX + "should_stop") == 1), None)


def spans(emo: Sequence[Line], name: str) -> list[tuple[int, int]]:
    """(start, length) of the stretches between log lines at whose end a flag stood."""
    steps, values = series(emo, PREFIX + name)
    starts = [0, *steps[:-1]]
    return [(start, step - start) for start, step, value in zip(starts, steps, values, strict=True) if value == 1]
