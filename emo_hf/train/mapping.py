"""Options that are mappings: `{key: value}` in YAML, JSON or `key=value,key=value` on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

import yaml

from emo_hf.train.errors import RecipeError, one_line

T = TypeVar("T")


def read_mapping(option: str, text: str | None) -> dict[str, Any]:
    """The mapping that was given, with numbers and truth values as YAML reads them; empty for None.

    Raises:
        RecipeError: if it is none.
    """
    if not text:
        return {}
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        pairs = [part.partition("=") for part in text.split(",")]
        if all(key.strip() and equals for key, equals, _ in pairs):
            return {key.strip(): _number(yaml.safe_load(value)) for key, _, value in pairs}
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{option}: {text!r} cannot be read: {one_line(error)}") from error
    raise RecipeError(f"{option}: {text!r} is not of the form key=value,key=value")


def _number(value: Any) -> Any:
    """1e-3 is a string to YAML."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_keys(option: str, given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse what `owner` does not know.

    Raises:
        RecipeError: with the name that was probably meant.
    """
    names = list(known)
    for key in given:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names[:30]) or 'none'}"
            raise RecipeError(f"{option}: {owner} has no option {key!r}: {hint}")


def make_options(cls: type[T], option: str, text: str | None, owner: str) -> T:
    """A dataclass of options from a mapping; it checks its values in `__post_init__`.

    Raises:
        RecipeError: for a key that it does not have, a value of another type, or one that it refuses.
    """
    given = read_mapping(option, text)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(option, given, fields, owner)
    for key, value in given.items():
        default = fields[key].default
        if isinstance(default, float) and type(value) is int:
            given[key] = float(value)
        elif not isinstance(value, type(default)) or isinstance(value, bool) is not isinstance(default, bool):
            raise RecipeError(f"{option}: {key} must be of type {type(default).__name__}, got {value!r}")
    try:
        return cls(**given)
    except ValueError as error:
        raise RecipeError(f"{option}: {one_line(error)}") from error
