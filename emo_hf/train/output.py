"""The output folder: what may be resumed, and that nothing that was trained is lost by accident."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from emo_hf.cli_errors import UserError, saying
from emo_hf.trainer.checkpoints import last_whole_checkpoint, what_is_missing

SUMMARY = "summary.json"
"""What a run has come to, in its folder."""

_RESULTS = ("adapter_*", "model*.safetensors", "model.safetensors.index.json", "config.json", "labels.json")


def checkpoint_to_resume(output_dir: str, resume: str | None, overwrite: bool) -> str | None:
    """The checkpoint to go on from, or None to start afresh.

    Args:
        output_dir: folder of the run.
        resume: a checkpoint, a run's folder (its last checkpoint is meant), `true` (the last one in output_dir),
            `auto` (the same, if there is one), or nothing.
        overwrite: whether a run that is there already may be replaced.
    """
    folder, choice = Path(output_dir), (resume or "false").lower()
    _check_writable(folder)
    if choice not in ("false", "no", "none"):
        if overwrite:
            raise UserError("overwrite and resume_from_checkpoint exclude each other")
        wanted = folder if choice in ("true", "yes", "auto") else Path(str(resume)).expanduser()
        if _is_checkpoint(wanted) and (flaw := what_is_missing(wanted)) is not None:
            raise UserError(
                f"resume_from_checkpoint: {str(wanted)!r} was not saved to its end: {flaw}. Take the one before, "
                f"or the run's folder {str(wanted.parent)!r}, of which the newest whole checkpoint is taken"
            )
        found = str(wanted) if _is_checkpoint(wanted) else last_whole_checkpoint(wanted)
        if found is not None:
            return found
        if choice != "auto":
            raise UserError(f"resume_from_checkpoint: there is no checkpoint in {str(wanted)!r}")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"output_dir {output_dir!r} is not empty: go on with --resume_from_checkpoint true, "
            "replace it with --overwrite, or choose another folder"
        )
    return None


def finished(training: TrainingArguments, checkpoint: str) -> dict[str, Any] | None:
    """The facts of the run in output_dir, if the checkpoint is of its last step and no more steps are asked for."""
    try:
        facts, state = (
            json.loads(Path(str(training.output_dir), name).read_text(encoding="utf-8"))
            for name in (SUMMARY, "trainer_state.json")
        )
        taken, planned, epochs = facts["steps"], facts["planned_steps"], state["epoch"]
    except (OSError, ValueError, KeyError):
        return None
    longer = training.max_steps > taken if training.max_steps > 0 else training.num_train_epochs > epochs
    is_last = Path(checkpoint) == Path(str(training.output_dir), f"checkpoint-{taken}")
    return facts if is_last and taken >= planned and not longer else None


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made, before anything is loaded; nothing is made here."""
    with saying(f"output_dir {str(folder)[:100]!r} cannot be used: ", OSError, ValueError):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"{str(there)!r} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"there is no right to write into {str(there)!r}")


def remove_previous_run(output_dir: str) -> None:
    """Remove the checkpoints and the saved model of an earlier run, and nothing else that the folder may hold."""
    folder = Path(output_dir)
    merged = [folder / "merged"] if (folder / "merged" / "config.json").is_file() else []
    for old in (*filter(_is_checkpoint, folder.glob("*")), *merged):
        shutil.rmtree(old)
    for file in (file for pattern in _RESULTS for file in folder.glob(pattern)):
        file.unlink()


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name) is not None
