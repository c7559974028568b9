"""How state is saved and read: a reader for each kind of value, and nothing is assigned before all has been read.

Saved state is plain numbers, strings and lists, always of one structure: torch compares the structure of a state with
that of a fresh one to broadcast it. Lists that grow are therefore filled up with None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Reader = Callable[[Any], Any]
"""Takes a saved value and returns it checked; raises ValueError otherwise."""


def finite(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def at_least_zero(value: Any) -> float:
    number = finite(value)
    if number < 0.0:
        raise ValueError(f"{value!r} is below 0")
    return number


def count(value: Any) -> int:
    number = at_least_zero(value)
    if number != int(number):
        raise ValueError(f"{value!r} is not a whole number")
    return int(number)


def flag(value: Any) -> bool:
    if value not in (True, False):
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


class Numbers:
    """Reads a list of up to `length` finite numbers, which is saved with None in the free places."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, value: Any) -> list[float]:
        if not isinstance(value, (list, tuple)) or len(value) != self.length:
            raise ValueError(f"{value!r:.80} is not a list of {self.length}")
        return [finite(number) for number in value if number is not None]


def saved(owner: Any, table: Mapping[str, Reader]) -> dict[str, Any]:
    """The attributes that a table names, as its readers read them."""
    values = {name: getattr(owner, name) for name in table}
    for name, reader in table.items():
        if isinstance(reader, Numbers):
            values[name] = [*values[name], *[None] * (reader.length - len(values[name]))]
    return values


def read(values: Mapping[str, Any], table: Mapping[str, Reader]) -> dict[str, Any]:
    """The saved values that a table names, checked; a ValueError names what is missing, or wrong with a value."""
    missing = sorted(table.keys() - values.keys())
    if missing:
        raise ValueError(f"the checkpoint's emotion lacks {', '.join(missing)}: it is damaged or was cut short")
    checked = {}
    try:
        for name, reader in table.items():
            checked[name] = reader(values[name])
    except (ValueError, RuntimeError) as error:  # which torch raises for a tensor of several elements
        raise ValueError(f"the checkpoint's emotion is damaged: {name}: {error}") from None
    return checked
