"""A picture as one page of HTML that zooms and shows values, by plotly, with nothing to load from elsewhere."""

from __future__ import annotations

import html
import math
from typing import Any

from emo_hf.plot.drawing import shown
from emo_hf.plot.panels import ZONE_COLORS, Color, Panel, Picture

UNIT, HEAD = 110, 90  # pixels: of a panel's height, and above the first one
GAP = 30
_BEHIND: dict[str, Any] = {"opacity": 0.3, "showlegend": False, "hoverinfo": "skip"}


def page_of(picture: Picture) -> str:
    """The page.

    Raises:
        ModuleNotFoundError: if plotly is not installed.
    """
    from plotly.io import to_html
    from plotly.subplots import make_subplots

    heights = [panel.height for panel in picture.panels]
    height = HEAD + UNIT * sum(heights)
    figure = make_subplots(
        rows=len(heights), shared_xaxes=True, row_heights=heights, vertical_spacing=GAP / (height - HEAD)
    )
    for row, panel in enumerate(picture.panels, start=1):
        _draw(figure, row, panel)
        for stop in picture.stops:
            line = {"color": stop.color, "width": 1, "dash": stop.dash}
            words = _escaped(stop.words) if row == 1 else ""
            figure.add_vline(stop.step, line=line, annotation_text=words, row=row, col=1)
    figure.update_xaxes(title_text="optimizer step", row=len(heights), col=1)
    figure.update_layout(
        title={"text": _escaped(picture.title)}, height=height, template="plotly_white", hovermode="x unified",
        dragmode="zoom", margin={"t": HEAD, "b": 60},
    )  # fmt: skip
    config = {"displaylogo": False, "scrollZoom": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
    drawn = to_html(figure, full_html=False, include_plotlyjs=True, config=config)
    notes = "".join(f"<li>{html.escape(mark.words)}</li>" for panel in picture.panels for mark in panel.marks)
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{html.escape(picture.title)}</title></head>\n'
        f'<body style="font-family: sans-serif">{drawn}<ol>{notes}</ol></body></html>\n'
    )


def _draw(figure: Any, row: int, panel: Panel) -> None:
    from plotly.graph_objects import Scatter

    place: dict[str, Any] = {"row": row, "col": 1}
    looks: dict[str, Any]
    text: dict[str, Any]
    legend = "legend" if row == 1 else f"legend{row}"
    if panel.band[0]:
        steps, low, high = panel.band
        outline = {"x": [*steps, *reversed(steps)], "y": [*high, *reversed(low)], "mode": "none", "fill": "toself"}
        looks = {"fillcolor": "rgba(230, 159, 0, 0.3)", "hoverinfo": "skip", "name": "lowest to highest"}
        figure.add_trace(Scatter(**outline, **looks, legend=legend), **place)
    for curve in panel.curves:
        steps, values = curve.series
        looks = {"showlegend": not panel.zones} if curve.name else _BEHIND
        figure.add_trace(
            Scatter(
                x=steps, y=[value if math.isfinite(value) else None for value in values], name=_escaped(curve.name),
                line={"color": curve.color, "width": curve.width, "dash": curve.dash}, legend=legend,
                mode="lines+markers" if curve.dots or len(steps) == 1 else "lines", **looks,
            ),
            **place,
        )  # fmt: skip
    for number, mark in enumerate(panel.marks, start=1):
        figure.add_trace(
            Scatter(
                x=[mark.step], y=[mark.value], mode="markers+text", text=[str(number)], showlegend=False,
                marker={"size": 18, "color": mark.color}, textfont={"color": "white", "size": 11},
                name=_escaped(mark.words), hoverinfo="name", hoverlabel={"namelength": -1},
            ),
            **place,
        )  # fmt: skip
    for zone in panel.zones:
        looks = {"fillcolor": ZONE_COLORS[zone.kind], "line_width": 0, "layer": "below"}
        text = {"annotation_text": _escaped(zone.what), "annotation_position": "right"}
        figure.add_hrect(zone.low, zone.high, **text, **looks, **place)
    for i, (start, end) in enumerate(panel.quiet):
        text = {} if i else {"annotation_text": "quiet", "annotation_position": "bottom left"}
        figure.add_vrect(start, end, fillcolor=Color.SKY, opacity=0.2, line_width=0, **text, **place)
    for step in panel.left_out:
        figure.add_vline(step, line={"color": Color.BLACK, "width": 1}, opacity=0.4, **place)
    figure.update_layout({legend: {"y": figure.get_subplot(row, 1).yaxis.domain[1], "yanchor": "top"}})
    limits = {} if panel.log or panel.low is None else {"range": [panel.low, panel.high]}
    figure.update_yaxes(title_text=panel.what, type="log" if panel.log else "linear", **limits, **place)


def _escaped(name: str) -> str:
    """A name that plotly does not take for its own kind of HTML; it knows these three entities."""
    return html.escape(shown(name, 200), quote=False)
