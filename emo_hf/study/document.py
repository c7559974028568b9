"""What a report is made of: blocks that Markdown and HTML both can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `code` between backticks, **strong** between two asterisks."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown. Columns after the first `words` are numbers, and stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    folded: str | None = None
    """A line under which the table is hidden until someone wants it; None to show it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG in the report's folder.

    Attributes:
        file: its name.
        shows: what is to be seen, for those who cannot see it.
    """

    file: str
    shows: str


Block: TypeAlias = "Heading | Text | Table | Picture"
