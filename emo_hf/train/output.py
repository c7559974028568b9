"""The output folder: what may be resumed, and that nothing that was trained is lost by accident."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from emo_hf.train.errors import RecipeError
from emo_hf.trainer.checkpoints import what_is_missing

_RESULTS = ("adapter_*", "model*.safetensors", "model.safetensors.index.json", "config.json", "labels.json")


def checkpoint_to_resume(output_dir: str, resume: str | None, overwrite: bool) -> str | None:
    """The checkpoint to go on from, or None to start afresh.

    Args:
        output_dir: folder of the run.
        resume: a checkpoint, a run's folder (its last checkpoint is meant), `true` (the last one in output_dir),
            `auto` (the same, if there is one), or nothing.
        overwrite: whether a run that is there already may be replaced.

    Raises:
        RecipeError: if there is no such checkpoint, or a run is there that would be overwritten.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"output_dir: {output_dir!r} is a file")
    choice = (resume or "false").lower()
    if choice not in ("false", "no", "none"):
        if overwrite:
            raise RecipeError("overwrite and resume_from_checkpoint exclude each other")
        in_output_dir = choice in ("true", "yes", "auto")
        wanted = folder if in_output_dir else Path(str(resume)).expanduser()
        itself = not in_output_dir and _is_checkpoint(wanted) and _is_whole(wanted)
        found = wanted if itself else last_checkpoint(wanted)
        if found is None and choice != "auto":
            flaw = what_is_missing(wanted) if _is_checkpoint(wanted) else None
            if flaw is not None:
                raise RecipeError(
                    f"resume_from_checkpoint: {str(wanted)!r} was not saved to its end: {flaw}. Take the one before, "
                    f"or the run's folder {str(wanted.parent)!r}, of which the newest whole checkpoint is taken"
                )
            raise RecipeError(f"resume_from_checkpoint: there is no checkpoint in {str(wanted)!r}")
        if found is not None:
            return str(found)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(
            f"output_dir {output_dir!r} is not empty: go on with --resume_from_checkpoint true, "
            "replace it with --overwrite, or choose another folder"
        )
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of most steps in a run's folder that was saved to its end."""
    numbered = [(int(p.name.partition("-")[2]), p) for p in _checkpoints(folder) if _is_whole(p)]
    return max(numbered)[1] if numbered else None


def remove_previous_run(output_dir: str) -> None:
    """Remove the checkpoints and the saved model of an earlier run, and nothing else that the folder may hold."""
    folder = Path(output_dir)
    for checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)
    if (folder / "merged" / "config.json").is_file():
        shutil.rmtree(folder / "merged")
    for pattern in _RESULTS:
        for file in folder.glob(pattern):
            file.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _is_checkpoint(path)]


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name) is not None


def _is_whole(checkpoint: Path) -> bool:
    return what_is_missing(checkpoint) is None
