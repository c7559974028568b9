"""What is known of a run: from `trainer_state.json` and from TensorBoard's event files, whichever has got further."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emo_hf.cli_errors import UserError
from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.laws.words import KINDS
from emo_hf.plot.events import event_files, read_events

STATE = "trainer_state.json"

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
    files = event_files(place)
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
    """The run as its furthest state tells it; while it is going, that of a checkpoint is newer than the run's own.

    What cannot be read, since a kill cut it short, is passed over as long as there is another.
    """
    files = [place] if place.suffix == ".json" and place.is_file() else []
    if place.is_dir():
        checkpoints = [path for path in place.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
        checkpoints.sort(key=lambda path: int(path.name.partition("-")[2]), reverse=True)
        files = [file for folder in (place, *checkpoints) if (file := folder / STATE).is_file()]
    newest: Run | None = None
    objection: UserError | None = None
    for file in files:
        try:
            run = _read_state(file)
        except UserError as error:
            objection = objection or error
            continue
        newest = run if newest is None or run.last_step > newest.last_step else newest
        if file.parent != place:  # older checkpoints come after it
            break
    if newest is None and objection is not None:
        raise objection
    return newest


def _read_state(file: Path) -> Run:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        history = [_line(line) for line in _list(state["log_history"])]
        notes = (state.get("stateful_callbacks") or {}).get(NOTES) or {}
        decisions = [note_of(decision) for decision in _list(notes.get("decisions") or [])]
        law = notes.get("law")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is not a Trainer's state ({type(error).__name__}: {error})") from error
    return Run(history=history, law=None if law is None else str(law), decisions=decisions)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is wanted, not {value!r:.60}")
    return value


def _line(line: Any) -> Line:
    """A log line in which all that is drawn is a number."""
    drawn = [name for name in line if name in ("loss", "learning_rate") or name.startswith(PREFIX)]
    numbers = {name: _number(name, line[name]) for name in [*drawn, *evaluations_in(line)] if line[name] is not None}
    return {**line, **numbers, **({"step": _step(line)} if "step" in line else {})}


def evaluations_in(line: Line) -> list[str]:
    """The names of evaluation losses: `eval_loss`, and `eval_<set>_loss`."""
    return [name for name in line if name.startswith("eval_") and name.endswith("_loss")]


def note_of(decision: Mapping[str, Any]) -> Note:
    """A decision as `trainer_state.json` keeps it.

    Raises:
        KeyError, TypeError, ValueError: for what is none.
    """
    if decision["kind"] not in KINDS:
        raise ValueError(f"a decision's kind is {decision['kind']!r:.60}, not one of {', '.join(KINDS)}")
    factor = _number("factor", decision["factor"])
    return Note(_step(decision), decision["kind"], factor, str(decision["reason"]))


def _step(of: Mapping[str, Any]) -> int:
    number = _number("step", of["step"])
    if number < 0 or not number.is_integer():
        raise ValueError(f"step is {of['step']!r:.60}, not a whole number")
    return int(number)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (int, float)):
            return float(value)
    except OverflowError:  # of whole numbers with hundreds of digits
        pass
    raise TypeError(f"{name} is {value!r:.60}, not a number")
