"""What a law has decided, kept as data in a run's state and said in the log: for logs, pictures and summaries."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from transformers import TrainerState

from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import NOTES
from emo_hf.laws.words import SKIPPED, text_of

logger = logging.getLogger(__name__)

MOST = 300
"""Decisions that are kept of a run; of more the oldest steps that were left out go first."""


def begin_notes(emo: Any, state: TrainerState) -> None:
    """Begin the notes of a run, or go on with those of the checkpoint that it was resumed from."""
    earlier = state.stateful_callbacks.get(NOTES) or {} if state.global_step else {}
    # Not as an ExportableState: the Trainer cannot save one when the run that it resumes had none, and makes those
    # that it restores anew, without their `on_init_end`.
    state.stateful_callbacks[NOTES] = {"law": emo.emotion.law, "decisions": list(earlier.get("decisions", []))}
    _take_in(emo, state.stateful_callbacks[NOTES])


def say_decisions(emo: Any, state: TrainerState) -> None:
    """Log and note what the law has decided since it was last asked."""
    notes = state.stateful_callbacks.get(NOTES)
    if emo is None or notes is None:
        return
    said_before = {note["kind"] for note in notes["decisions"]}
    for note in _take_in(emo, notes):
        is_first = note.kind not in said_before
        said_before.add(note.kind)
        if state.is_world_process_zero and (is_first or note.kind != SKIPPED):
            logger.warning("Step %d: %s", note.step, text_of(note, first=is_first))


def _take_in(emo: Any, notes: dict[str, Any]) -> list[Note]:
    """Note what is new, and give it."""
    decisions, known = emo.decisions, notes["decisions"]
    if not decisions or asdict(decisions[-1]) == (known[-1] if known else None):  # what nearly every step is
        return []
    new = [note for note in decisions if asdict(note) not in known]
    notes["decisions"] = _shortened([*known, *map(asdict, new)])
    return new


def _shortened(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spare = max(len(decisions) - MOST, 0)
    kept = []
    for note in decisions:
        if spare and note["kind"] == SKIPPED:
            spare -= 1
        else:
            kept.append(note)
    return kept[-MOST:]
