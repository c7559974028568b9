"""How state is read: one reader for each kind of value, and nothing is assigned before all of it has been read.

Saved state is plain numbers, strings and lists, always of one structure: torch compares the structure of a state with
that of a fresh one to broadcast it. Lists that grow are therefore filled up with None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from emo_hf.laws.decision import Note
from emo_hf.laws.words import KINDS

Reader = Callable[[Any], Any]
"""Takes a saved value and returns it checked; raises ValueError otherwise."""


def finite(value: Any) -> float:
    """A finite number."""
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def at_least_zero(value: Any) -> float:
    """A finite number that is not negative."""
    number = finite(value)
    if number < 0.0:
        raise ValueError(f"{value!r} is below 0")
    return number


def count(value: Any) -> int:
    """A whole number of at least 0."""
    number = at_least_zero(value)
    if number != int(number):
        raise ValueError(f"{value!r} is not a whole number")
    return int(number)


def flag(value: Any) -> bool:
    """True or false."""
    if isinstance(value, (str, bytes)) or value is None or value not in (True, False):
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


def numbers(length: int) -> Reader:
    """A list of up to `length` finite numbers, saved with None in the places that are free."""

    def read(value: Any) -> list[float]:
        return [finite(number) for number in _places(value, length) if number is not None]

    return read


def notes(length: int) -> Reader:
    """A list of up to `length` notes, each saved as [step, kind, factor, reason]."""

    def read(value: Any) -> list[Note]:
        return [_note(entry) for entry in _places(value, length) if _places(entry, 4)[1] is not None]

    return read


def nested(table: Mapping[str, Reader]) -> Reader:
    """The values of a part, in a mapping of their own."""

    def read_part(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r:.80} is no mapping")
        return read(value, table)

    return read_part


def saved_notes(log: list[Note], length: int) -> list[list[Any]]:
    """What `notes(length)` reads."""
    rows: list[list[Any]] = [[note.step, note.kind, note.factor, note.reason] for note in log]
    return rows + [[None] * 4 for _ in range(length - len(log))]


def filled(values: list[float], length: int) -> list[float | None]:
    """What `numbers(length)` reads."""
    return [*values, *[None] * (length - len(values))]


def read(saved: Mapping[str, Any], table: Mapping[str, Reader]) -> dict[str, Any]:
    """The values that a table names, checked.

    Args:
        saved: what was saved.
        table: name → its reader.

    Raises:
        ValueError: naming what is missing, or what is wrong with a value.
    """
    missing = sorted(table.keys() - saved.keys())
    if missing:
        raise ValueError(f"the checkpoint's emotion lacks {', '.join(missing)}: it is damaged or was cut short")
    return {name: _named(name, saved[name], reader) for name, reader in table.items()}


def _named(name: str, value: Any, reader: Reader) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"the checkpoint's emotion is damaged: {name}: {error}") from None


def _note(entry: list[Any]) -> Note:
    step, kind, factor, reason = entry
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(reason, str):
        raise ValueError(f"{entry!r} is no decision")
    return Note(count(step), kind, at_least_zero(factor), reason)


def _places(value: Any, length: int) -> list[Any]:
    if not isinstance(value, (list, tuple)) or len(value) != length:
        raise ValueError(f"{value!r:.80} is not a list of {length}")
    return list(value)
