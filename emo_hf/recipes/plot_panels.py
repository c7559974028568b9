"""The panels of a run's picture, one function each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emo_hf.emotion.law import Zone
from emo_hf.emotion.metrics import PREFIX

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, RED, GREY = "#1f5fa8", "#e07b1a", "#2a8f5b", "#c23b3b", "#8a8f98"
PURPLE, DARK = "#7a4fb5", "#4d4d4d"
_OTHERS = (PURPLE, "#0f9aa8", "#b5497f", "#8c6d1f", DARK)
_ZONE_COLORS = {"brake": "#fbe3e3", "boost": "#e2f3e8", "quiet": "#f1f2f4", "slow": "#fdf0dc"}

Line = Mapping[str, Any]


def series(lines: Sequence[Line], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of what was logged under a name."""
    present = [line for line in lines if name in line]
    return [line["step"] for line in present], [float(line[name]) for line in present]


def legend(panel: Axes) -> None:
    """To the right of a panel, where no data are."""
    panel.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, fontsize=8.5, borderaxespad=0)


def _note(panel: Axes, height: float, text: str, transform: Any) -> None:
    panel.text(1.01, height, text, transform=transform, va="center", fontsize=8.5, color="#444")


def loss(panel: Axes, lines: Sequence[Line], evaluations: Sequence[Line], emo: Sequence[Line]) -> None:
    """Losses: of training, its averages, of evaluations."""
    marker = "o" if len(lines) == 1 else None
    panel.plot(*series(lines, "loss"), color=GREY, linewidth=1.2, marker=marker, label="training loss")
    if emo:
        panel.plot(*series(emo, PREFIX + "loss_short"), color=ORANGE, linewidth=1.4, label="short average")
        panel.plot(*series(emo, PREFIX + "loss_long"), color=BLUE, linewidth=1.8, label="long average")
    if evaluations:
        panel.plot(
            *series(evaluations, "eval_loss"),
            color=GREEN, marker="D", markersize=5, linewidth=1.2, linestyle="--", label="evaluation loss",
        )  # fmt: skip
    panel.set_ylabel("loss")
    panel.grid(axis="y", alpha=0.25)
    legend(panel)


def learning_rate(panel: Axes, lines: Sequence[Line], emo: Sequence[Line]) -> None:
    """The schedule's rate, and the effective one of each group."""
    steps, plain = series(lines, "learning_rate")
    groups = _distinct_groups(emo)
    for (names, (at, values)), color in zip(groups, (ORANGE, *_OTHERS), strict=False):
        label = "effective" + (f": {', '.join(names)}" if names else "")
        panel.plot(at, values, color=color, linewidth=1.5, label=label)
    # Groups may be orders of magnitude apart (LoRA+); the tail of a schedule that ends at 0 shall not decide it.
    peaks = [peak for _, (_, values) in groups if (peak := max(values, default=0.0)) > 0]
    unit, label = 1.0, "plain learning rate"
    if peaks and max(plain, default=0.0) > 100 * max(peaks):  # v3.9, say, of whose rates it is the scale
        unit = 10.0 ** round(math.log10(max(peaks) / max(plain)))
        label = f"plain learning rate × {unit:g}"
    shown = [unit * value for value in plain]
    panel.plot(steps, shown, color=BLUE, linewidth=1.3, linestyle="--", label=label, zorder=1.5)
    if peaks and max(peaks) / min(peaks) > 5:
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panel.set_ylabel("learning rate")
    panel.grid(axis="y", alpha=0.25)
    legend(panel)


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
        _note(panel, (zone.low + zone.high) / 2, zone.what, panel.get_yaxis_transform())
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
    panel.fill_between(steps, low, high, color=ORANGE, alpha=0.25, linewidth=0, label="min to max between logs")
    panel.plot(*series(emo, PREFIX + "coefficient_mean"), color=ORANGE, linewidth=1.5, label="mean between logs")
    panel.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    panel.set_ylim(0, 1.05 * max(high) if high and max(high) > 0 else 1.0)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panel.set_ylabel("coefficient c")
    legend(panel)


def signals(panel: Axes, emo: Sequence[Line], fired: int | None) -> None:
    """Where quiet and the stop signal stood."""
    for row, (name, color) in enumerate((("should_stop", RED), ("quiet", BLUE))):
        spans = _spans(emo, PREFIX + name)
        panel.broken_barh(spans, (row - 0.35, 0.7), facecolors=color, alpha=0.8)
    panel.set_ylim(-0.5, 1.5)
    panel.set_yticks([])
    _note(panel, 1, "quiet", panel.get_yaxis_transform())
    text = "stop signal: never" if fired is None else f"stop signal: from step {fired:,}"
    _note(panel, 0, text, panel.get_yaxis_transform())


def first_stop(emo: Sequence[Line]) -> int | None:
    """The first logged step at which the stop signal stood."""
    return next((line["step"] for line in emo if line.get(PREFIX + "should_stop") == 1), None)


def _spans(emo: Sequence[Line], name: str) -> list[tuple[int, int]]:
    """(start, length) of the stretches between log lines at whose end a flag stood."""
    steps, values = series(emo, name)
    starts = [0, *steps[:-1]]
    return [(start, step - start) for start, step, value in zip(starts, steps, values, strict=True) if value == 1]
