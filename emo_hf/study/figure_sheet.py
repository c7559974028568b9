"""What all pictures of a report have in common: a colour, dashes and a mark for each arm, panels, one legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emo_hf.study.analysis import Analysis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = (
    "#1f5fa8", "#e07b1a", "#2a8f5b", "#c23b3b", "#7a4fb5", "#0f9aa8", "#b5497f", "#8c6d1f", "#5aa9e6", "#9bbf3b",
)  # fmt: skip
REFERENCE, GREY = "#111111", "#8a8f98"
BETTER_COLOR, WORSE_COLOR = "#1c7a45", "#b3261e"
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<>h"
DPI = 130
COLUMNS = 3


class Sheet:
    """Draws a report's pictures into a folder.

    Args:
        analysis: what to draw.
        folder: where the PNGs go.
    """

    def __init__(self, analysis: Analysis, folder: Path) -> None:
        self.analysis = analysis
        self.folder = folder
        study = analysis.study
        others = [arm for arm in study.arms if arm != study.reference]
        self._style: dict[str, dict[str, Any]] = {
            study.reference: {"color": REFERENCE, "linestyle": "-", "marker": "o"}
        }
        for i, arm in enumerate(others):
            dash = _DASHES[i // len(_COLORS) % len(_DASHES)]
            marker = _MARKERS[(i + 1) % len(_MARKERS)]
            self._style[arm] = {"color": _COLORS[i % len(_COLORS)], "linestyle": dash, "marker": marker}
        for i, style in enumerate(self._style.values()):  # lines that lie on each other shall all be seen
            style["linewidth"] = 2.8 - 1.8 * i / max(len(self._style) - 1, 1)

    def _line(self, arm: str) -> dict[str, Any]:
        return {key: self._style[arm][key] for key in ("color", "linestyle", "linewidth")}

    def _panels(
        self, count: int, *, width: float = 4.1, height: float = 3.1, share_y: bool = False
    ) -> tuple[Figure, list[Axes]]:
        columns = min(count, COLUMNS)
        rows = math.ceil(count / columns)
        figure = Figure(
            figsize=(width * max(columns, 1.6 if width < 7 else 1), height * rows + 0.5), layout="constrained"
        )
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
        for panel in panels[count:]:
            panel.remove()
        return figure, panels[:count]

    def _finish(
        self, figure: Figure, panels: Sequence[Axes], file: str, marks: Mapping[str, Any] | None = None
    ) -> None:
        known: dict[str, Any] = {}
        for panel in panels:
            panel.grid(axis="y", alpha=0.25)
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                known.setdefault(label, handle)
        ordered = [arm for arm in self.analysis.study.arms if arm in known]
        known |= marks or {}
        ordered += marks or {}
        figure.legend(
            [known[name] for name in ordered], ordered, loc="outside lower center", ncols=min(len(ordered), 5),
            frameon=False, fontsize=8.5,
        )  # fmt: skip
        self._save(figure, panels, file)

    def _save(self, figure: Figure, panels: Sequence[Axes], file: str) -> None:
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8.5)
        figure.savefig(self.folder / file, dpi=DPI)
