"""What is known of a run: from `trainer_state.json` and from TensorBoard's event files, whichever has got further."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emo_hf.cli_errors import UserError
from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.laws.words import KINDS

STATE = "trainer_state.json"
PATTERN = "events.out.tfevents.*"

Line = Mapping[str, Any]
Series = tuple[list[int], list[float]]
"""Steps and values."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run.

    Attributes:
        name: how pictures call it.
        history: log lines as the Trainer files them: `step`, and `loss`, `eval_loss`, `emo/…`.
        law: the law that its emotion followed, where that is said.
        decisions: what the law has decided.
    """

    name: str = ""
    history: Sequence[Line] = ()
    law: str | None = None
    decisions: Sequence[Note] = ()

    @property
    def last_step(self) -> int:
        """The step of the newest line, 0 if there is none."""
        return max((int(line["step"]) for line in self.history if "step" in line), default=0)

    def series(self, name: str) -> Series:
        """What was logged under a name."""
        found = [line for line in self.history if "step" in line and line.get(name) is not None]
        return [int(line["step"]) for line in found], [float(line[name]) for line in found]


def read_run(place: Path) -> Run:
    """Read a run.

    Args:
        place: a run's output folder, a checkpoint, a folder of TensorBoard's, or a file of either kind.

    Raises:
        UserError: if there is nothing of a run, or a file cannot be read.
    """
    if not place.exists():
        raise UserError(f"there is no file or folder {str(place)!r}")
    run = _newest_state(place)
    files = sorted(place.rglob(PATTERN)) if place.is_dir() else [place] * place.match(PATTERN)
    if run is None and not files:
        raise UserError(
            f"{str(place)!r} is no run: it holds neither {STATE}, nor a checkpoint, nor TensorBoard's event files"
        )
    run = run or Run()
    newer = [line for line in read_events(files) if line["step"] > run.last_step]
    return replace(run, name=folder_of(place).name, history=[*run.history, *newer])


def folder_of(place: Path) -> Path:
    """The folder that a run lies in."""
    return (place.parent if place.is_file() else place).resolve()


def named_apart(runs: Sequence[Run], places: Sequence[Path]) -> list[Run]:
    """Runs whose names differ: those of the same folder name get as many folders above it as it takes."""
    parts = [folder_of(place).parts for place in places]
    made = []
    for run, own in zip(runs, parts, strict=True):
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        made.append(replace(run, name="/".join(own[-count:])))
    return made


def _newest_state(place: Path) -> Run | None:
    """The run as its furthest whole state tells it; while it is going, that of a checkpoint is newer than its own."""
    if place.is_file():
        return _read_state(place) if place.suffix == ".json" else None
    numbered = sorted(place.glob("checkpoint-*"), key=lambda folder: (len(folder.name), folder.name))
    files = [file for folder in (place, *reversed(numbered[-2:])) if (file := folder / STATE).is_file()]
    runs = []
    for file in files:
        with contextlib.suppress(UserError):  # it may have been cut short
            runs.append(_read_state(file))
    if files and not runs:
        return _read_state(files[0])  # says what is wrong with it
    return max(runs, key=lambda run: run.last_step, default=None)


def _read_state(file: Path) -> Run:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        history = [_line(line) for line in state["log_history"]]
        notes = (state.get("stateful_callbacks") or {}).get(NOTES) or {}
        decisions, law = [note_of(decision) for decision in notes.get("decisions") or ()], notes.get("law")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is not a Trainer's state ({type(error).__name__}: {error})") from error
    return Run(history=history, law=None if law is None else str(law), decisions=decisions)


def _line(line: Line) -> Line:
    """A log line in which all that is drawn is a number."""
    drawn = {"loss", "learning_rate", *evaluations_in(line), *(name for name in line if name.startswith(PREFIX))}
    numbers = {name: float(value) for name, value in line.items() if name in drawn and value is not None}
    return {**line, **numbers, **({"step": int(line["step"])} if "step" in line else {})}


def evaluations_in(line: Line) -> list[str]:
    """The names of evaluation losses: `eval_loss`, and `eval_<set>_loss`."""
    return [name for name in line if name.startswith("eval_") and name.endswith("_loss")]


def note_of(decision: Mapping[str, Any]) -> Note:
    """A decision as `trainer_state.json` keeps it.

    Raises:
        KeyError, OverflowError, TypeError, ValueError: for what is none.
    """
    if decision["kind"] not in KINDS:
        raise ValueError(f"a decision's kind is {decision['kind']!r:.60}, not one of {', '.join(KINDS)}")
    return Note(int(decision["step"]), decision["kind"], float(decision["factor"]), str(decision["reason"]))


def read_events(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Log lines from event files, in the order of their steps.

    A training that was resumed, or begun anew in the same folder, has a file of its own: what an earlier one says of
    the steps from there on is left out.

    Raises:
        UserError: if TensorBoard is not installed.
    """
    if not files:
        return []
    try:
        from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f'reading TensorBoard\'s events needs it: pip install "emo_hf[hf]" ({error})') from error
    begun: list[tuple[float, list[dict[str, Any]]]] = []
    for file in files:
        events = event_accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        lines: dict[tuple[int, bool], dict[str, Any]] = {}
        first = float("inf")
        for tag in events.Tags()["scalars"]:
            name = f"eval_{tag[5:]}" if tag.startswith("eval/") else tag.removeprefix("train/")  # as in log lines
            for event in events.Scalars(tag):
                line = lines.setdefault((event.step, name.startswith("eval_")), {"step": event.step})
                line[name] = event.value
                first = min(first, event.wall_time)
        if lines:
            begun.append((first, [lines[key] for key in sorted(lines)]))
    made: list[dict[str, Any]] = []
    for _, of_file in sorted(begun, key=lambda item: item[0]):
        made = [line for line in made if line["step"] < of_file[0]["step"]] + of_file
    return made
