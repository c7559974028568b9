"""A figure as one page of HTML that zooms, pans and shows values, with nothing to load from elsewhere."""

from __future__ import annotations

import html
import io
import json
import math
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 72  # of an inch: the units of matplotlib's SVG
RELOAD = 4000  # milliseconds
MOST_POINTS = 4000  # of a curve, for the values that are read off; the drawn curve has them all


def page_of(figure: Figure, *, title: str, live: bool = False) -> str:
    """The page.

    Args:
        figure: the picture, of panels over one axis of steps.
        title: what the browser's tab says.
        live: whether the page loads itself again every few seconds, where it was.
    """
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    template = resources.files("emo_hf.plot").joinpath("page.html").read_text(encoding="utf-8")
    data = {"panels": [_panel(panel, figure) for panel in figure.axes], "reload": RELOAD if live else 0}
    parts = {
        "TITLE": html.escape(title),
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/"),
        "PICTURE": svg,
    }
    for name, part in parts.items():
        template = template.replace(f"<!--{name}-->", part, 1)
    return template


def _panel(panel: Axes, figure: Figure) -> dict[str, Any]:
    """Where a panel lies in the picture, and what its named curves are."""
    width, height = (POINTS * side for side in figure.get_size_inches())
    place = panel.get_position()
    left, right = panel.get_xlim()
    curves = []
    for line in panel.lines:
        label = str(line.get_label())
        if label.startswith("_") or line.get_linestyle() == "None":
            continue
        points = [[_short(x), _short(y)] for x, y in np.asarray(line.get_xydata()) if math.isfinite(y)]
        curves.append({"name": label, "color": line.get_color(), "points": points[:: len(points) // MOST_POINTS + 1]})
    return {
        "name": " ".join(panel.get_ylabel().split()),
        "box": [_short(place.x0 * width), _short((1 - place.y1) * height), _short(place.x1 * width),
                _short((1 - place.y0) * height)],
        "steps": [_short(left), _short(right)],
        "curves": curves,
    }  # fmt: skip


def _short(value: Any) -> float:
    return float(f"{float(value):.6g}")
