"""`emo-hf plot RUN…`: a picture of one run, or of several in one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from emo_hf.cli_errors import UserError, one_sentence
from emo_hf.plot.figure import picture_of
from emo_hf.plot.panels import Picture
from emo_hf.plot.run import Run, named_apart, read_run

PICTURE = "run.png"
"""How the picture is called in a run's folder."""
PICTURE_OF_SEVERAL = "runs.png"
ENDINGS = (".png", ".svg", ".pdf", ".html")


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="emo-hf plot", allow_abbrev=False,
        description="Draw training runs: loss, evaluations, effective learning rate, σ, factor, what was decided.",
    )  # fmt: skip
    runs = "a run's output folder, a checkpoint, or a folder of TensorBoard's event files; several share one picture"
    output = (
        f"the picture, by its ending ({', '.join(ENDINGS)}); .html is one page that zooms and shows values; may be "
        f"given more than once (default: {PICTURE} in the run's folder, {PICTURE_OF_SEVERAL} here for several)"
    )
    made.add_argument("runs", nargs="+", metavar="RUN", type=Path, help=runs)
    made.add_argument("--output", action="append", metavar="FILE", type=Path, help=output)
    made.add_argument("--title", help="what stands above (default: the name of the run's folder)")
    return made


@one_sentence("emo-hf plot")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `RUN… [--output FILE]`; gives 0, or 2 when there is nothing to draw or draw with (stderr says what)."""
    options = parser().parse_args(argv)
    places: list[Path] = options.runs
    folder = places[0].parent if places[0].is_file() else places[0]
    outputs = options.output or [Path(PICTURE_OF_SEVERAL) if len(places) > 1 else folder / PICTURE]
    for output in outputs:
        _kind_of(output)
    runs = named_apart([read_run(place) for place in places], places)
    picture = picture_of(runs, options.title)
    for output in outputs:
        write(picture, output)
        print(output, flush=True)
    return 0


def draw(run: Run, output: str | Path) -> None:
    """Write the picture of a run.

    Raises:
        UserError: if nothing was logged, or the file cannot be written.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    write(picture_of([run]), Path(output))


def write(picture: Picture, output: Path) -> None:
    """Write a picture: PNG, SVG, PDF or a page that zooms, by the file's name.

    Raises:
        UserError: for a file of another name, or that cannot be written.
        ModuleNotFoundError: if what draws it is not installed.
    """
    kind = _kind_of(output)
    if kind == "html":
        from emo_hf.plot.page import page_of

        content = page_of(picture).encode()
    else:
        from emo_hf.plot.drawing import image_of

        content = image_of(picture, kind)
    try:
        output.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror}") from error


def _kind_of(output: Path) -> str:
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"--output must end in one of {', '.join(ENDINGS)}, got {str(output)!r}")
    return output.suffix.lower()[1:]


if __name__ == "__main__":
    sys.exit(main())
