"""A picture as PNG, SVG or PDF, by matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emo_hf.plot.panels import ZONE_COLORS, Color, Curve, Panel, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
MOST_NOTES = 12  # below a picture
LONGEST = 44  # letters of a name beside a panel
_DASHES: dict[str, Any] = {
    "solid": "-", "dash": (0, (6, 2)), "dashdot": (0, (6, 2, 1.5, 2)), "dot": (0, (1.5, 1.8)),
    "longdash": (0, (3, 1.5)),
}  # fmt: skip


def image_of(picture: Picture, kind: str) -> bytes:
    """The content of a file of a kind: `png`, `svg` or `pdf`."""
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in letters that the font does not have
        figure_of(picture).savefig(made, format=kind, dpi=DPI)
    return made.getvalue()


def figure_of(picture: Picture) -> Figure:
    """The picture as matplotlib's figure, one set of axes for each panel."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"text.parse_math": False}):  # names are no formulas
        notes = picture.notes
        if len(notes) > MOST_NOTES:
            notes[MOST_NOTES - 1 :] = [f"and {len(notes) - MOST_NOTES + 1} more"]
        heights = [panel.height for panel in picture.panels]
        figure = Figure(figsize=(11, 1.1 + 1.15 * sum(heights) + 0.17 * len(notes)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        for each, panel in zip(axes, picture.panels, strict=True):
            names: list[tuple[Any, str]] = []
            for stop in picture.stops:
                line = each.axvline(stop.step, color=stop.color, linestyle=_DASHES[stop.dash], linewidth=1, alpha=0.7)
                names += [(line, stop.words)] if each is axes[-1] else []
            _name(each, [*_draw(each, panel), *names])
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        figure.suptitle(shown(picture.title, 90), fontsize=13, fontweight="bold")
        figure.align_ylabels(axes)
        if notes:
            lines = "\n".join(shown(note, 130) for note in notes)
            figure.supxlabel(lines, x=0.02, ha="left", multialignment="left", fontsize=9)
    return figure


def shown(name: str, longest: int = LONGEST) -> str:
    """A name as it can be drawn in one line: without control characters, cut in the middle if it is long."""
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"


def _draw(axes: Axes, panel: Panel) -> list[tuple[Any, str]]:
    """Draw a panel; gives what is in it with its names."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.set_ylabel(panel.what.replace(", ", ",\n"))
    axes.grid(axis="y", alpha=0.25)
    for zone in panel.zones:
        axes.axhspan(zone.low, zone.high, color=ZONE_COLORS[zone.kind], linewidth=0, zorder=0)
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
        axes.text(1.012, (zone.low + zone.high) / 2, zone.what, color="#444444", **place)
    lines = [(_draw_curve(axes, curve), curve.name) for curve in panel.curves]
    names = [(line, name) for line, name in lines if name and not panel.zones]
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.band[0]:
        band = axes.fill_between(*panel.band, color=Color.ORANGE, alpha=0.3, linewidth=0)
        names.append((band, "lowest to highest"))
        axes.axhline(1, color=Color.GREY, linewidth=0.8, zorder=0)
    if panel.quiet:
        spans = [(start, end - start) for start, end in panel.quiet]
        foot = axes.broken_barh(spans, (0.0, 0.05), facecolors=Color.SKY, transform=axes.get_xaxis_transform())
        names.append((foot, "quiet"))
    if panel.left_out:
        heights = [0.03] * len(panel.left_out)
        (ticks,) = axes.plot(
            panel.left_out, heights, "|", color=Color.BLACK, markersize=8, transform=axes.get_xaxis_transform()
        )
        names.append((ticks, f"{len(panel.left_out)} step{'s' * (len(panel.left_out) > 1)} left out"))
    axes.set_ylim(panel.low, panel.high)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    for number, mark in enumerate(panel.marks, start=1):
        axes.plot([mark.step], [mark.value], "o", markersize=12, color=mark.color, markeredgecolor="white", zorder=5)
        at = (mark.step, mark.value)
        axes.annotate(str(number), at, color="white", fontsize=8, ha="center", va="center", zorder=6)
    return names


def _draw_curve(axes: Axes, curve: Curve) -> Any:
    dots = curve.dots or len(curve.series[0]) == 1
    looks: dict[str, Any] = {"linestyle": _DASHES[curve.dash]} if curve.name else {"alpha": 0.25, "zorder": 1}
    (line,) = axes.plot(
        *curve.series, color=curve.color, linewidth=curve.width, marker="o" if dots else None, markersize=4, **looks
    )
    return line


def _name(axes: Axes, names: Sequence[tuple[Any, str]]) -> None:
    """A legend to the right of a panel."""
    legend = axes.legend(
        [handle for handle, _ in names], ["·"] * len(names),
        loc="upper left", bbox_to_anchor=(1.0, 1.03), frameon=False, fontsize=8.5, handlelength=2.6,
    )  # fmt: skip
    for text, (_, name) in zip(legend.get_texts(), names, strict=True):
        text.set_text(shown(name))  # not at once: older legends leave out names that begin with an underscore
