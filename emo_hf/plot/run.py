"""What is known of a run: from `trainer_state.json` and from TensorBoard's event files, whichever has got further."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emo_hf.laws.metrics import NOTES
from emo_hf.plot.errors import PlotError
from emo_hf.plot.events import event_files, read_events

STATE = "trainer_state.json"
ENDED = "train_runtime"
"""What the Trainer logs at the end of training, and only there."""

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run.

    Attributes:
        name: how pictures call it.
        history: log lines as the Trainer files them: `step`, and `loss`, `eval_loss`, `emo/…`.
        law: the law that its emotion followed, where that is said.
        decisions: what the law has decided, as [step, text].
        planned_steps: how many steps it was to have, where that is said.
    """

    name: str = ""
    history: Sequence[Line] = ()
    law: str | None = None
    decisions: Sequence[Sequence[Any]] = ()
    planned_steps: int | None = None

    @property
    def last_step(self) -> int:
        """The step of the newest line, 0 if there is none."""
        return max((int(line["step"]) for line in self.history if "step" in line), default=0)

    @property
    def has_ended(self) -> bool:
        """Whether training has come to its end, as far as the files say."""
        last = self.last_step
        if any(ENDED in line and line.get("step") == last for line in self.history):
            return True
        return self.planned_steps is not None and last >= self.planned_steps > 0


def read_run(place: Path) -> Run:
    """Read a run.

    Args:
        place: a run's output folder, a checkpoint, a folder of TensorBoard's, or a file of either kind.

    Raises:
        PlotError: if there is nothing of a run, or a file cannot be read.
    """
    if not place.exists():
        raise PlotError(f"there is no file or folder {str(place)!r}")
    state = _newest_state(place)
    files = event_files(place)
    if state is None and not files:
        raise PlotError(
            f"{str(place)!r} holds neither {STATE}, nor a checkpoint, nor TensorBoard's events: it is no run's output"
        )
    run = Run() if state is None else _run_of(state)
    logged = read_events(files)
    newer = [line for line in logged if line["step"] > run.last_step]
    return replace(run, name=_name_of(place), history=[*run.history, *newer])


def files_of(place: Path) -> list[Path]:
    """The files that `read_run` would look at, as far as they are there."""
    return [*_states(place), *event_files(place)]


def named_apart(runs: Sequence[Run], places: Sequence[Path]) -> list[Run]:
    """Runs whose names differ: those of the same folder name get as many folders above it as it takes."""
    parts = [place.resolve().parts for place in places]
    made = []
    for run, own in zip(runs, parts, strict=True):
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        made.append(run if count == 1 else replace(run, name="/".join(own[-count:])))
    return made


def _name_of(place: Path) -> str:
    path = place.resolve()
    return path.parent.name if path.is_file() else path.name


def _states(place: Path) -> list[Path]:
    """The run's own state first, then those of its checkpoints, the newest first."""
    if place.is_file():
        return [place] if place.suffix == ".json" else []
    found = [path for path in place.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    found.sort(key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return [file for folder in (place, *found) if (file := folder / STATE).is_file()]


def _newest_state(place: Path) -> Mapping[str, Any] | None:
    """The state of most steps; while a run is going, that of a checkpoint may be newer than the run's own.

    What cannot be read, since a kill cut it short, is passed over as long as there is another.
    """
    newest: Mapping[str, Any] | None = None
    objection: PlotError | None = None
    for file in _states(place):
        try:
            state = _read_state(file)
        except PlotError as error:
            objection = objection or error
            continue
        if newest is None or state.get("global_step", 0) > newest.get("global_step", 0):
            newest = state
        if file.parent != place:  # older checkpoints come after it
            break
    if newest is None and objection is not None:
        raise objection
    return newest


def _read_state(file: Path) -> Mapping[str, Any]:
    try:
        state: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(state["log_history"], list):
            raise TypeError("its log_history is not a list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise PlotError(f"{str(file)!r} is not a Trainer's state ({type(error).__name__}: {said})") from error
    return state


def _run_of(state: Mapping[str, Any]) -> Run:
    run = Run(history=list(state["log_history"]), planned_steps=state.get("max_steps"))
    notes = (state.get("stateful_callbacks") or {}).get(NOTES)
    if not isinstance(notes, dict) or "law" not in notes:
        return run
    decisions = [(int(step), str(text)) for step, text in notes.get("decisions", ())]
    return replace(run, law=str(notes["law"]), decisions=decisions)
