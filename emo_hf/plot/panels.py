"""What a picture of runs consists of, as plain data, which `drawing.py` makes an image of and `page.py` a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emo_hf.laws import Zone
from emo_hf.plot.run import Series


class Color:
    """Colours that the colour-blind tell apart: Okabe and Ito, "Color Universal Design" (2008), without yellow."""

    BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
    PURPLE, ORANGE, SKY, GREY = "#CC79A7", "#E69F00", "#56B4E9", "#7a7f87"


COLORS = (Color.BLUE, Color.VERMILLION, Color.GREEN, Color.PURPLE, Color.BLACK, Color.ORANGE, Color.SKY)
DASHES = ("solid", "dash", "dashdot", "dot", "longdash")
"""As plotly calls them. They tell curves apart in print without colours."""
ZONE_COLORS = {"brake": "#f9e3d6", "boost": "#ddf1ea", "quiet": "#f1f2f4", "slow": "#fdf3dc"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve of a panel; `name` is empty for one that is drawn faintly behind another."""

    name: str
    series: Series
    color: str
    dash: str = "solid"
    width: float = 1.6
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A decision on a curve; its words stand below the picture, by its number, which counts from 1."""

    step: int
    value: float
    color: str
    words: str


@dataclass(kw_only=True)
class Panel:
    """One quantity over the steps.

    Attributes:
        what: the quantity.
        height: in units of 1.15 inches.
        low, high: the ends of its axis, None for what the curves need.
        log: whether that axis is logarithmic.
        curves: the curves.
        zones: ranges of the quantity that have a name.
        band: steps, and the lowest and highest values since the step before.
        quiet: (start, end) of stretches in which the emotion was quiet.
        left_out: steps that were left out.
        marks: what was decided.
    """

    what: str
    height: float
    low: float | None = None
    high: float | None = None
    log: bool = False
    curves: list[Curve] = field(default_factory=list)
    zones: Sequence[Zone] = ()
    band: tuple[Sequence[int], Sequence[float], Sequence[float]] = ((), (), ())
    quiet: Sequence[tuple[int, int]] = ()
    left_out: Sequence[int] = ()
    marks: list[Mark] = field(default_factory=list)

    def add(self, name: str, series: Series, color: str, dash: str = "solid", **looks: Any) -> None:
        """Add a curve, if anything was logged for it."""
        if series[0]:
            self.curves.append(Curve(name=name, series=series, color=color, dash=dash, **looks))


@dataclass(frozen=True, kw_only=True)
class Stop:
    """From which step on a run's stop signal has stood: an upright line through all panels."""

    step: int
    color: str
    dash: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Panels one below the other, over one axis of steps; a title above, what was decided below, in words."""

    title: str
    panels: Sequence[Panel]
    stops: Sequence[Stop]

    @property
    def notes(self) -> list[str]:
        """The words of all marks."""
        return [f"{i}  {mark.words}" for panel in self.panels for i, mark in enumerate(panel.marks, start=1)]


def style(index: int) -> tuple[str, str]:
    """Colour and dash of the run of this index: no two of the first 35 are alike."""
    return COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
