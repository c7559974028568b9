"""The pictures of a report, PNGs by matplotlib; each returns False where there is nothing to draw."""

from __future__ import annotations

from emo_hf.study.figures_of_behaviour import BehaviourFigures
from emo_hf.study.figures_of_differences import DifferenceFigures
from emo_hf.study.figures_of_losses import LossFigures


class Figures(LossFigures, DifferenceFigures, BehaviourFigures):
    """All pictures of a report.

    Args:
        analysis: what to draw.
        folder: where the PNGs go.
    """
