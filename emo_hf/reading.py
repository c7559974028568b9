"""Reads the values of options, as text from a command line or as Python values, and says what would be accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Reader: TypeAlias = "Callable[[Any], Any]"
"""Takes what was given and returns the value; raises ValueError("what is accepted") otherwise."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of all optimizers, or one that a law or a rule has of its own.

    Attributes:
        default: the value of those who say nothing.
        read: checks a value, or reads it from text.
        help: what it does, in a few words.
        per_group: whether each parameter group may have a value of its own.
    """

    default: Any
    read: Reader
    help: str
    per_group: bool = False


def read_value(name: str, value: Any, read: Reader) -> Any:
    """The value of an option.

    Raises:
        ValueError: naming the option, the value and what is accepted.
    """
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"option {name}={value!r} is not acceptable: it takes {error}") from None


def optional(read: Reader) -> Reader:
    """None, or what `read` takes."""

    def read_or_none(value: Any) -> Any:
        return None if value is None else read(value)

    return read_or_none


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError("true or false")


def boolean_or_auto(value: Any) -> bool | None:
    if value is None or (isinstance(value, str) and value.lower() in ("auto", "none")):
        return None
    try:
        return boolean(value)
    except ValueError:
        raise ValueError("true, false or auto") from None


def boolean_or(*choices: str) -> Callable[[Any], bool | str]:
    def read(value: Any) -> bool | str:
        if isinstance(value, str) and value in choices:
            return value
        try:
            return boolean(value)
        except ValueError:
            raise ValueError(f"{', '.join(('true', 'false', *choices[:-1]))} or {choices[-1]}") from None

    return read


def number(low: float, below: float = math.inf, *, above: bool = False) -> Callable[[Any], float]:
    """A number of at least `low`, or above it, and below `below`."""
    accepted = f"a number {'above' if above else 'of at least'} {low:g}"
    accepted += f" and below {below:g}" if below < math.inf else ""

    def read(value: Any) -> float:
        try:
            result = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            result = math.nan
        if not low <= result < below or (above and result == low):
            raise ValueError(accepted)
        return result

    return read


def whole_number(low: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            result = low - 1 if isinstance(value, (bool, float)) else int(value)
        except (TypeError, ValueError, OverflowError):
            result = low - 1
        if result < low:
            raise ValueError(f"a whole number of at least {low}")
        return result

    return read


def one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError("one of " + ", ".join(choices))

    return read


def pair_below_one(value: Any) -> tuple[float, float]:
    """Two decay rates, each in [0, 1), such as betas; as text with a slash or a colon between them."""
    parts = value.replace(":", "/").split("/") if isinstance(value, str) else value
    try:
        if isinstance(parts, (set, frozenset, dict)):  # they have no order
            raise TypeError
        first, second = (number(0, below=1)(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError("two numbers of at least 0 and below 1, as text 0.9/0.99") from None
    return first, second
