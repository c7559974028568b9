"""A figure as a file: what kind, its name says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from emo_hf.plot.errors import PlotError
from emo_hf.plot.figure import figure
from emo_hf.plot.page import page_of
from emo_hf.plot.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "run.png"
"""How the picture is called in a run's folder."""

ENDINGS = (".png", ".svg", ".pdf", ".html")
DPI = 130


def check_ending(output: str | Path) -> str:
    """How a file's name ends, in small letters.

    Raises:
        PlotError: if no picture can be made of that.
    """
    ending = Path(output).suffix.lower()
    if ending not in ENDINGS:
        raise PlotError(f"--output must end in one of {', '.join(ENDINGS)}, got {str(output)!r}")
    return ending


def draw(run: Run, output: str | Path) -> None:
    """Write the picture of a run.

    Args:
        run: the run.
        output: the file, as `write` takes it.

    Raises:
        PlotError: if nothing was logged, or matplotlib is not installed.
        OSError: if it cannot be written.
    """
    write(figure(run), output, title=run.name)


def write(picture: Figure, output: str | Path, *, title: str, live: bool = False) -> None:
    """Write a picture, whole or not at all: whoever looks at it while it is drawn again sees the one before.

    Args:
        picture: the figure.
        output: the file; PNG, SVG, PDF or a page that zooms, by its name.
        title: of the page.
        live: whether the page shall load itself again every few seconds.

    Raises:
        PlotError: for a file of another name.
        OSError: if it cannot be written.
    """
    ending = check_ending(output)
    target = Path(output)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=ending, dir=target.parent)
    os.close(handle)
    try:
        if ending == ".html":
            Path(name).write_text(page_of(picture, title=title, live=live), encoding="utf-8")
        else:
            metadata = {"Date": None} if ending == ".svg" else None  # the same run gives the same file
            picture.savefig(name, dpi=DPI, metadata=metadata)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's files are for their owner alone
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
