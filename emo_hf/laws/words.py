"""What a law has decided, in words."""

from __future__ import annotations

from emo_hf.laws.decision import Note


def text_of(note: Note) -> str:
    """A decision in words."""
    return f"{note.kind}: {note.reason}"
