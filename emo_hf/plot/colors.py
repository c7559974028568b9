"""Colours that the colour-blind can tell apart, and line styles that tell curves apart where there are no colours.

The colours are those of Okabe and Ito, "Color Universal Design" (2008), without the yellow, which is lost on white.
"""

from __future__ import annotations

from typing import Any

BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
GREY, DARK = "#7a7f87", "#3c4043"

COLORS = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, ORANGE, SKY)
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (1.5, 1.8)), (0, (3, 1.5)))


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the curve of this index: no two of the first 35 are alike."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}
