"""What a law has decided in words, kept in a run's state: for logs, pictures and summaries."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerState

from emo_hf.laws.metrics import NOTES, SKIPPED

logger = logging.getLogger(__name__)

MOST = 300
"""Decisions that are kept of a run; of more the oldest spikes are left out first."""

Note = list[Any]
"""[step, text], as JSON gives it back."""


def begin_notes(emo: Any, state: TrainerState) -> None:
    """Begin the notes of a run, or go on with those of the checkpoint that it was resumed from."""
    earlier = state.stateful_callbacks.get(NOTES) or {} if state.global_step else {}
    # Not as an ExportableState: the Trainer cannot save one when the run that it resumes had none, and makes those
    # that it restores anew, without their `on_init_end`.
    state.stateful_callbacks[NOTES] = {"law": emo.emotion.law, "decisions": list(earlier.get("decisions", []))}
    _take_in(emo, state.stateful_callbacks[NOTES])


def say_decisions(emo: Any, state: TrainerState) -> None:
    """Log and note what the law has decided since it was last asked, in its own words."""
    notes = state.stateful_callbacks.get(NOTES)
    if emo is None or notes is None:
        return
    for step, text in _take_in(emo, notes):
        if state.is_world_process_zero:
            logger.warning("Step %d: %s", step, text)


def _take_in(emo: Any, notes: dict[str, Any]) -> list[Note]:
    """Note what is new, and give it."""
    decisions, known = [list(decision) for decision in emo.decisions], notes["decisions"]
    if not decisions or decisions[-1:] == known[-1:]:  # what nearly every step is
        return []
    new = [decision for decision in decisions if decision not in known]
    notes["decisions"] = _shortened([*known, *new])
    return new


def _shortened(decisions: list[Note]) -> list[Note]:
    spare = max(len(decisions) - MOST, 0)
    kept = []
    for step, text in decisions:
        if spare and str(text).startswith(SKIPPED):
            spare -= 1
        else:
            kept.append([step, text])
    return kept[-MOST:]
