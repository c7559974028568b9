"""TensorBoard's event files as log lines of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emo_hf.cli_errors import UserError

PATTERN = "events.out.tfevents.*"
_PREFIXES = {"train/": "", "eval/": "eval_"}
"""How the Trainer's reporter calls things, and how its log lines do."""


def event_files(place: Path) -> list[Path]:
    """The event files at or below a place."""
    if place.is_file():
        return [place] if place.match(PATTERN) else []
    return sorted(place.rglob(PATTERN))


def read_events(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Log lines from event files, in the order of their steps.

    A training that was resumed, or begun anew in the same folder, has a file of its own: what an earlier one says of
    the steps from there on is left out.

    Raises:
        UserError: if TensorBoard is not installed.
    """
    if not files:
        return []
    try:
        from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f'reading TensorBoard\'s events needs it: pip install "emo_hf[hf]" ({error})') from error
    begun: list[tuple[float, list[dict[str, Any]]]] = []
    for file in files:
        events = event_accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        lines: dict[tuple[int, bool], dict[str, Any]] = {}
        first = float("inf")
        for tag in events.Tags()["scalars"]:
            name = _name_of(tag)
            for event in events.Scalars(tag):
                line = lines.setdefault((event.step, name.startswith("eval_")), {"step": event.step})
                line[name] = event.value
                first = min(first, event.wall_time)
        if lines:
            begun.append((first, [lines[key] for key in sorted(lines)]))
    made: list[dict[str, Any]] = []
    for _, of_file in sorted(begun, key=lambda item: item[0]):
        made = [line for line in made if line["step"] < of_file[0]["step"]] + of_file
    return made


def _name_of(tag: str) -> str:
    for prefix, instead in _PREFIXES.items():
        if tag.startswith(prefix):
            return instead + tag.removeprefix(prefix)
    return tag
