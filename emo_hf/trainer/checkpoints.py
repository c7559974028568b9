"""Which of a run's checkpoints is whole: a process that is killed while it saves leaves one that is cut short.

The Trainer writes a checkpoint's files one after the other into their final place, `trainer_state.json` last, and
`resume_from_checkpoint=True` takes the newest folder, whole or not. `last_whole_checkpoint` takes the newest that can
be read to its end. Nothing of the files is loaded or executed: their tables of contents are enough.

A run that writes over another run's checkpoint and is killed half-way leaves files of both, each of them readable.
So `EmoCallback` removes the old `trainer_state.json` before the Trainer writes over the rest.
"""

from __future__ import annotations

import json
import logging
import shutil
import struct
import zipfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path

logger = logging.getLogger(__name__)

LEAST_FREE = 64 * 1024
"""Bytes; with fewer of them a disk is full."""

STATE = "trainer_state.json"  # written after everything else
NOT_WHOLE = (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, zipfile.BadZipFile)


def last_whole_checkpoint(output_dir: str | PathLike[str]) -> str | None:
    """The newest checkpoint of a run that was saved to its end, for `trainer.train(resume_from_checkpoint=…)`.

    Newer ones that were cut short are passed over with a warning that names what is wrong with them. They can stay
    where they are: when the run gets there again, it writes over them.

    Args:
        output_dir: the run's `output_dir`; it need not exist.

    Returns:
        The folder of the checkpoint, or None if there is none, which makes `train` start from the beginning.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    checkpoints = {int(path.name[11:]): path for path in folders if path.name[11:].isdecimal()}
    for _, checkpoint in sorted(checkpoints.items(), reverse=True):
        flaw = what_is_missing(checkpoint)
        if flaw is None:
            return str(checkpoint)
        logger.warning("Passing over %s, which was not saved to its end: %s", checkpoint, flaw)
    return None


def what_is_missing(checkpoint: str | PathLike[str]) -> str | None:
    """Why a checkpoint is not whole, or None if it is."""
    folder = Path(checkpoint)
    if not (folder / STATE).is_file():
        return f"{STATE} is missing"
    try:
        for file in sorted(file for file in folder.rglob("*") if file.suffix in _CHECKS and file.is_file()):
            _CHECKS[file.suffix](file)
    except NOT_WHOLE as error:
        return f"{file.name} cannot be read to its end ({type(error).__name__}: {error})"
    return None


def begin_overwriting(output_dir: str | PathLike[str], step: int) -> None:
    """Let the checkpoint of a step, if there is one, count as cut short until it is written anew."""
    (Path(output_dir) / f"checkpoint-{step}" / STATE).unlink(missing_ok=True)


def warn_if_cut_short(named: object, output_dir: str | None) -> None:
    """Say what is wrong with the checkpoint that a script was told to resume from, before torch says it its way."""
    if not isinstance(named, str) or not Path(named).is_dir():
        return
    flaw = what_is_missing(named)
    if flaw is not None:
        logger.warning(
            "resume_from_checkpoint=%s was not saved to its end: %s. emo_hf.last_whole_checkpoint(%r) gives the "
            "newest checkpoint that was.",
            named, flaw, output_dir,
        )  # fmt: skip


def warn_if_full(output_dir: str | PathLike[str], step: int) -> None:
    """Say in words, when a checkpoint could not be written, that the disk is full; torch says "basic_ios::clear"."""
    if Path(output_dir).is_dir() and shutil.disk_usage(output_dir).free < LEAST_FREE:
        logger.error(
            "The disk is full: %s could not be saved to its end. The checkpoint before it stays whole: make room, and "
            "go on from it (emo_hf.last_whole_checkpoint finds it).",
            Path(output_dir) / f"checkpoint-{step}",
        )


def _check_json(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    shards = set(content["weight_map"].values()) if file.name.endswith(".index.json") else set()
    if missing := [name for name in sorted(shards) if not (file.parent / name).is_file()]:
        raise ValueError(f"{', '.join(missing)} is missing")


def _check_safetensors(file: Path) -> None:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    wanted, there = 8 + length + max(ends, default=0), file.stat().st_size
    if there != wanted:
        raise ValueError(f"{there} of {wanted} bytes")


def _check_torch(file: Path) -> None:
    with zipfile.ZipFile(file):  # its table of contents is the last thing that torch.save writes
        pass


_CHECKS: dict[str, Callable[[Path], None]] = {
    ".json": _check_json, ".safetensors": _check_safetensors, **dict.fromkeys((".pt", ".pth", ".bin"), _check_torch)
}  # fmt: skip
