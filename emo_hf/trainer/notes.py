"""What the law of a run has decided: said once in the log, and kept as data in `trainer_state.json`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import NOTES
from emo_hf.laws.words import SKIPPED, text_of
from emo_hf.trainer.options import ALL

if TYPE_CHECKING:
    from transformers import TrainerState

logger = logging.getLogger(__name__)

MOST_NOTES = 300
"""Decisions that are kept of a run; of more the oldest steps that were left out go first."""


class RunNotes:
    """Of one run, in its state under `NOTES`.

    Not as an ExportableState: the Trainer cannot save one when the run that it resumes had none, and makes those that
    it restores anew, without their `on_init_end`.
    """

    def __init__(self) -> None:
        self._known: list[Note] = []  # decisions that have been said

    def begin(self, emo: Any, state: TrainerState, console: str | None) -> None:
        """Begin the notes of a run, or go on with those of the checkpoint that it was resumed from."""
        earlier = state.stateful_callbacks.get(NOTES) or {} if state.global_step else {}
        kept = {key: earlier[key] for key in ("decisions", "evaluated") if key in earlier}
        shown = {"console": ALL} if console == ALL else {}
        state.stateful_callbacks[NOTES] = {"law": emo.emotion.law, "decisions": [], **kept, **shown}
        self._known = emo.decisions

    def say_decisions(self, emo: Any, state: TrainerState) -> None:
        """Log and note what the law has decided since it was last asked."""
        notes = state.stateful_callbacks.get(NOTES)
        decisions = [] if emo is None or notes is None else emo.decisions
        if notes is None or decisions[-1:] == self._known[-1:]:  # what nearly every step is
            return
        new = [note for note in decisions if note not in self._known]
        said_before = {note["kind"] for note in notes["decisions"]}
        self._known = decisions
        notes["decisions"] = _shortened([*notes["decisions"], *map(asdict, new)])
        for note in new if state.is_world_process_zero else ():
            if note.kind != SKIPPED or SKIPPED not in said_before:  # of such steps the logs have the count
                logger.warning("Step %d: %s", note.step, text_of(note, first=note.kind not in said_before))
            said_before.add(note.kind)


def _shortened(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spare = max(len(decisions) - MOST_NOTES, 0)
    left_out = [place for place, note in enumerate(decisions) if note["kind"] == SKIPPED][:spare]
    return [note for place, note in enumerate(decisions) if place not in left_out][-MOST_NOTES:]
