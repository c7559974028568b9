"""`emo-hf plot RUN…`: a picture of one run or of several, drawn again while they are going if that is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emo_hf.plot.errors import PlotError
from emo_hf.plot.figure import figure
from emo_hf.plot.follow import EVERY, follow
from emo_hf.plot.output import ENDINGS, PICTURE, check_ending, write
from emo_hf.plot.run import Run, named_apart, read_run
from emo_hf.plot.several import figure_of_several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_OF_SEVERAL = "runs.png"
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="emo-hf plot",
        description="Draw training runs: loss, evaluations, effective learning rate, σ, factor, what was decided.",
        allow_abbrev=False,
    )
    made.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        help="output folder of a run, one of its checkpoints, or a folder of TensorBoard's events; with several runs, "
        "all are drawn into one picture",
    )
    made.add_argument(
        "--output",
        action="append",
        metavar="FILE",
        type=Path,
        help=f"the picture, by its ending ({', '.join(ENDINGS)}); .html is one page that zooms and shows values; may "
        f"be given more than once (default: {PICTURE} in the run's folder, {PICTURE_OF_SEVERAL} here for several)",
    )
    made.add_argument("--title", help="what stands above (default: the name of the run's folder)")
    made.add_argument("--law", help="the law that a run has followed, where its files do not say, for the ranges of σ")
    made.add_argument(
        "--follow", action="store_true", help="draw again whenever a run has written more, until it ends or Ctrl-C"
    )
    made.add_argument(
        "--every",
        type=_seconds,
        default=EVERY,
        metavar="SECONDS",
        help="between two looks with --follow (%(default)s)",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run `RUN… [--output FILE] [--follow]`.

    Args:
        argv: the arguments after `emo-hf plot`; the process's own if None.

    Returns:
        0; 2 when there is nothing to draw or nothing to draw with (stderr says what); 130 after Ctrl-C while it
        followed a run.
    """
    try:
        options = parser().parse_args(argv)
        return _plot(options)
    except (PlotError, OSError) as error:
        _complain(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)


def _plot(options: argparse.Namespace) -> int:
    places: list[Path] = options.runs
    if options.law is not None:
        from emo_hf.laws import LAWS

        if options.law not in LAWS:
            raise PlotError(f"--law must be one of {', '.join(LAWS)}, got {options.law!r}")
    outputs = options.output or [_default_output(places)]
    for output in outputs:
        check_ending(output)

    def draw(runs: Sequence[Run], going: bool) -> None:
        made, title = draw_runs(runs, places, title=options.title, law=options.law)
        for output in outputs:
            write(made, output, title=title, live=going)

    if options.follow:
        _say(f"following {', '.join(map(str, places))}: {', '.join(map(str, outputs))}; Ctrl-C ends it")
        follow(places, draw, every=options.every, say=_complain)
    else:
        draw([read_run(place) for place in places], False)
    for output in outputs:
        _say(str(output))
    return 0


def draw_runs(
    runs: Sequence[Run], places: Sequence[Path], *, title: str | None = None, law: str | None = None
) -> tuple[Figure, str]:
    """The picture of one or several runs, and its title.

    Raises:
        PlotError: if a run has logged nothing, or matplotlib is not installed.
    """
    if law is not None:
        runs = [run if run.law is not None else replace(run, law=law) for run in runs]
    if len(runs) == 1:
        title = title or runs[0].name
        return figure(runs[0], title=title), title
    runs = named_apart(runs, places)
    title = title or "runs"
    return figure_of_several(runs, title), title


def _default_output(places: Sequence[Path]) -> Path:
    if len(places) > 1:
        return Path(PICTURE_OF_SEVERAL)
    return (places[0].parent if places[0].is_file() else places[0]) / PICTURE


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 86400.0:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is wanted, got {text!r}")
    return value


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _complain(text: str) -> None:
    print(f"emo-hf plot: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
