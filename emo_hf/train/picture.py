"""The pictures of a run: by itself, and beside its own weights and other runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emo_hf.cli_errors import UserError
from emo_hf.plot.figure import picture_of
from emo_hf.plot.main import PICTURE, draw, write
from emo_hf.plot.run import Run, read_run
from emo_hf.train.errors import saying
from emo_hf.train.trainer import WEIGHTS

logger = logging.getLogger(__name__)

CURVES = "curves.png"
"""How the picture of several runs is called."""


def read_curves(folder: str) -> list[Run]:
    """The run in a folder; where the weights were evaluated beside their average, once for each of the two."""
    with saying("beside: ", OSError, ValueError):
        run = read_run(Path(folder))
    loss = WEIGHTS + "_loss"
    if not any(loss in line for line in run.history):
        return [run]
    others = [line for line in run.history if "eval_loss" not in line]
    of_weights = [{**line, "eval_loss": line[loss]} if loss in line else line for line in others]
    name = run.name
    return [replace(run, name=f"{name}, average"), replace(run, name=f"{name}, weights", history=of_weights)]


def draw_pictures(folder: str, beside: Sequence[Run]) -> dict[str, str]:
    """Draw a run that has been saved, by itself and with other curves; gives name → path of what was drawn."""
    drawn = {}
    try:
        draw(read_run(Path(folder)), os.path.join(folder, PICTURE))
        drawn["picture"] = os.path.join(folder, PICTURE)
        curves, title = [*read_curves(folder), *beside], os.path.basename(os.path.abspath(folder))
        if len(curves) > 1:
            write(picture_of(curves, title), Path(folder, CURVES))
            drawn["curves"] = os.path.join(folder, CURVES)
    except (UserError, ModuleNotFoundError, OSError, ValueError) as error:  # a run is worth more than its picture
        logger.warning("No picture: %s", error)
    return drawn
