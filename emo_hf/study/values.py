"""How the values of a study are read: what cannot be used is refused by its key, with what is accepted."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from emo_hf.study.errors import StudyError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def rates(where: str, value: Any) -> tuple[float, ...]:
    """Learning rates, in order."""
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    read = [number(item) for item in values]  # YAML reads 1e-5 as a text
    if not read or not all(0.0 < rate < math.inf for rate in read):
        raise StudyError(f"{where} must be a list of numbers above 0, got {value!r}")
    if len(set(read)) < len(read):
        raise StudyError(f"{where} must be different from each other, got {value!r}")
    return tuple(sorted(read))


def above_zero(where: str, value: Any) -> float:
    """A finite number above 0."""
    if not 0.0 < (read := number(value)) < math.inf:
        raise StudyError(f"{where} must be a number above 0, got {value!r}")
    return read


def number(value: Any) -> float:
    """A number, or NaN for what is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def count(where: str, value: Any, low: int) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise StudyError(f"{where} must be a whole number of at least {low}, got {value!r}")
    return value


def one_of(where: str, value: Any, known: Sequence[str]) -> str:
    """One of a few words."""
    if value not in known:
        raise StudyError(f"{where} must be one of {', '.join(known)}, got {value!r}")
    return str(value)


def word(value: Any) -> Any:
    """A word that YAML 1.1 takes for true or false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def mapping(where: str, value: Any) -> Mapping[str, Any]:
    """A mapping with texts as keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise StudyError(f"{where} must be a mapping, one `key: value` a line, got {value!r}")
    return value


def named(where: str, value: Any) -> Mapping[str, Any]:
    """A mapping from names, with one at least."""
    given = mapping(where, value)
    if not given:
        raise StudyError(f"{where} must hold at least one, got {{}}")
    for name in given:
        if not NAME.fullmatch(name):
            raise StudyError(f"{where}: a name must be of letters, digits and . _ + -, got {name!r}")
    return given


def only(known: Sequence[str], given: Mapping[str, Any], where: str) -> None:
    """Refuse keys that are not known."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {where}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise StudyError(f"unknown key {where}{key} ({hint})")
