"""The pictures of a run: by itself, and beside its own weights and other runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from emo_hf.cli_errors import UserError
from emo_hf.plot.figure import picture_of
from emo_hf.plot.main import PICTURE, draw, write
from emo_hf.plot.run import Run, read_run
from emo_hf.train.errors import saying

logger = logging.getLogger(__name__)

CURVES = "curves.png"
"""How the picture of several runs is called."""


def read_other(folder: str) -> Run:
    """A run whose curves are drawn beside those of the job."""
    with saying("beside: ", OSError, ValueError):
        return read_run(Path(folder))


def draw_pictures(folder: str, beside: Sequence[Run]) -> dict[str, str]:
    """Draw a run that has been saved, by itself and with other curves; gives name → path of what was drawn."""
    drawn = {}
    try:
        run, title = read_run(Path(folder)), os.path.basename(os.path.abspath(folder))
        draw(run, os.path.join(folder, PICTURE))
        drawn["picture"] = os.path.join(folder, PICTURE)
        if beside:
            write(picture_of([run, *beside], title), Path(folder, CURVES))
            drawn["curves"] = os.path.join(folder, CURVES)
    except (UserError, ModuleNotFoundError, OSError, ValueError) as error:  # a run is worth more than its picture
        logger.warning("No picture: %s", error)
    return drawn
