"""Whether this process is a notebook, and whose progress table its Trainers have then."""

from __future__ import annotations

from typing import Any

THEIRS = "transformers.utils.notebook"
OURS = "emo_hf.trainer.notebook_progress"


def show_rates() -> None:
    """In a notebook, have the progress table of Trainers that are made from now on show the dynamic learning rate.

    Elsewhere, and where somebody has chosen another progress callback, it changes nothing. A table of ours that is
    left from before a reload is replaced.
    """
    trainer = _transformers_trainer()
    if trainer.DEFAULT_PROGRESS_CALLBACK.__module__ in (THEIRS, OURS):
        from emo_hf.trainer.notebook_progress import EmoNotebookProgressCallback

        trainer.DEFAULT_PROGRESS_CALLBACK = EmoNotebookProgressCallback


def show_rates_no_more() -> None:
    """Give transformers its own table back, if ours is in its place."""
    trainer = _transformers_trainer()
    if trainer.DEFAULT_PROGRESS_CALLBACK.__module__ == OURS:
        from transformers.utils.notebook import NotebookProgressCallback

        trainer.DEFAULT_PROGRESS_CALLBACK = NotebookProgressCallback


def _transformers_trainer() -> Any:
    from transformers import trainer

    return trainer
