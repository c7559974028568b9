"""What `emo-hf compare` says when the user can put something right."""

from __future__ import annotations


class StudyError(Exception):
    """Its text is one sentence that names the key, what was given and what is accepted; the command exits with 2."""
