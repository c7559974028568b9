"""Data that need no file and no network: the standard library's docstrings, seen in the ways that the tasks need.

Each function gives the training and the validation rows, the same every time with the same Python.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

from emo_hf.train.docstrings import Docstring, load_docstrings

Rows = list[dict[str, Any]]
Sides = tuple[Rows, Rows]

_QUOTED = re.compile(r"``([^`\n]+)``|`([^`'\n]+)[`']|(?<!\w)'([^'\n]+)'(?!\w)")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def docstrings_by_package() -> Sides:
    """`text` and `label`: for which package was it written? Its name does not stand in the text."""
    return _sides(_by_package, mask_names=True)


def docstrings_as_prose() -> Sides:
    """`text`, as it was written."""
    return _sides(_by_package, mask_names=False)


def docstrings_with_code() -> Sides:
    """`tokens` and `tags`: paragraphs whose authors put code in quotes; the quotes are gone, the tags say where."""
    return _sides(_with_code, mask_names=False)


def docstrings_begun() -> Sides:
    """`prompt` and `completion`: the package and the first sentence of a docstring, and all that follows."""
    return _sides(_begun, mask_names=False)


def docstrings_preferred() -> Sides:
    """`prompt`, `chosen`, `rejected`: as `docstrings_begun`, against what follows in a docstring chosen at random."""
    return _sides(_preferred, mask_names=False)


def _sides(make: Callable[[list[Docstring]], Iterable[dict[str, Any]]], *, mask_names: bool) -> Sides:
    train, validation = _docstrings(mask_names)
    return list(make(train)), list(make(validation))


@functools.cache
def _docstrings(mask_names: bool) -> tuple[list[Docstring], list[Docstring]]:
    """Reading takes seconds, and one process may train many times."""
    return load_docstrings(mask_names=mask_names)


def _by_package(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    return ({"text": example.text, "label": example.label} for example in examples)


def _with_code(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    for example in examples:
        for paragraph in re.split(r"\n\s*\n", example.text):
            tokens: list[str] = []
            tags: list[str] = []
            start = 0
            for match in _QUOTED.finditer(paragraph):
                _add(paragraph[start : match.start()], ("O", "O"), tokens, tags)
                _add(next(filter(None, match.groups())), ("B-code", "I-code"), tokens, tags)
                start = match.end()
            _add(paragraph[start:], ("O", "O"), tokens, tags)
            if {"O", "B-code"} <= set(tags):
                yield {"tokens": tokens, "tags": tags}


def _add(text: str, kinds: tuple[str, str], tokens: list[str], tags: list[str]) -> None:
    found = _TOKEN.findall(text)
    tokens += found
    tags += [kinds[min(i, 1)] for i in range(len(found))]


def _begun(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    for example in examples:
        first, *rest = re.split(r"\n\s*\n|(?<=[.!?])\s+", example.text.strip(), maxsplit=1)
        if rest and len(rest[0].split()) > 2:
            yield {"prompt": f"{example.label}: {' '.join(first.split())}", "completion": rest[0].strip()}


def _preferred(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    rows = list(_begun(examples))
    others = [row["completion"] for row in rows]
    random.Random(0).shuffle(others)
    for row, other in zip(rows, others, strict=True):
        if other != row["completion"]:
            yield {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}
