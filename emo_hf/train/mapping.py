"""Options that are mappings: braces or lines in YAML, `key=value,key=value` on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml

from emo_hf.cli_errors import UserError
from emo_hf.train.errors import one_line


def read_mapping(option: str, text: str | None) -> dict[str, Any]:
    """A mapping that was given as `key=value,key=value` or in YAML's braces; empty for None."""
    if not text:
        return {}
    try:
        if text.lstrip().startswith("{"):
            found = yaml.safe_load(text)
        else:
            pairs = [part.partition("=") for part in text.split(",")]
            found = {key.strip(): yaml.safe_load(value) for key, equals, value in pairs if key.strip() and equals}
            if len(found) != len(pairs):
                raise ValueError("it is not of the form key=value,key=value")
        return {str(key): _number(value) for key, value in dict(found).items()}
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{option}: {text!r} cannot be read: {one_line(error)}") from error


def _number(value: Any) -> Any:
    """1e-3 is a string to YAML."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_keys(option: str, given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse keys that `owner` does not know."""
    names = list(known)
    for key in given:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names[:30])}"
            raise UserError(f"{option}: {owner} has no option {key!r}: {hint}")
