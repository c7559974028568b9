"""Names of curves at their ends, to the right of a panel, instead of a legend that has to be compared with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emo_hf.plot.colors import DARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = 8.5  # points
_ROW = 1.35  # of a label's own height
_SAMPLE = (1.012, 1.045)  # of the panel's width: from where to where a label shows the curve's dashes
_GROUP = "curve-label"


def label_curves(panel: Axes) -> None:
    """Write the name of each curve and band of a panel beside it, with a sample of what it looks like.

    Their heights are those of the curves' ends; `settle_labels` keeps them apart once the layout is known.
    """
    for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
        text = panel.text(
            _SAMPLE[1] + 0.007, _height(panel, handle), name,
            transform=panel.transAxes, va="center", fontsize=SIZE, color=DARK, gid=_GROUP,
        )  # fmt: skip
        text._emo_hf_sample = _sample(panel, handle)  # type: ignore[attr-defined]


def settle_labels(figure: Figure) -> None:
    """Move labels apart that would touch, in every panel, each as near to its curve as that leaves it."""
    figure.draw_without_rendering()
    for panel in figure.axes:
        texts = [text for text in panel.texts if text.get_gid() == _GROUP]
        if not texts:
            continue
        texts.sort(key=lambda text: text.get_position()[1])
        box = panel.get_window_extent()
        gap = _ROW * max(text.get_window_extent().height for text in texts) / box.height
        heights = spread([text.get_position()[1] for text in texts], gap)
        for text, height in zip(texts, heights, strict=True):
            text.set_y(height)
            sample = text._emo_hf_sample  # type: ignore[attr-defined]
            if hasattr(sample, "set_ydata"):
                sample.set_ydata([height] * len(sample.get_xdata()))
            else:
                sample.set_y(height - sample.get_height() / 2)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights that are at least `gap` apart, between 0 and 1 as far as there is room.

    Args:
        wanted: where they would be, ascending.
        gap: how far apart, as a share of the panel's height.
    """
    low, high = gap / 2, 1 - gap / 2
    made = [min(max(height, low), high) for height in wanted]
    for i in range(1, len(made)):
        made[i] = max(made[i], made[i - 1] + gap)
    if made and made[-1] > high:
        made[-1] = high
        for i in range(len(made) - 2, -1, -1):
            made[i] = min(made[i], made[i + 1] - gap)
    return made


def _height(panel: Axes, handle: Any) -> float:
    """Where a curve ends, as a share of the panel's height."""
    if not hasattr(handle, "get_ydata"):  # a band
        return 0.0
    points = zip(handle.get_xdata(), handle.get_ydata(), strict=True)
    ends = [(float(x), float(y)) for x, y in points if math.isfinite(float(y))]
    if not ends:
        return 0.5
    at = handle.get_transform().transform(ends[-1])
    return float(panel.transAxes.inverted().transform(at)[1])


def _sample(panel: Axes, handle: Any) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    left, right = _SAMPLE
    if hasattr(handle, "get_ydata"):
        middle = (left + right) / 2
        xs = [middle] if handle.get_linestyle() in ("None", "none", "") else [left, middle, right]
        sample: Any = Line2D(xs, [0.0] * len(xs), transform=panel.transAxes, clip_on=False)
        sample.update_from(handle)
        sample.set_transform(panel.transAxes)
        sample.set_clip_on(False)
        sample.set_clip_path(None)
        sample.set_markevery([len(xs) // 2])
    else:
        sample = Rectangle((left, 0.0), right - left, 0.03, transform=panel.transAxes, clip_on=False, linewidth=0)
        sample.set_facecolor(handle.get_facecolor()[0])
    sample.set_label("_sample")
    sample.set_in_layout(False)
    panel.add_artist(sample)
    return sample
