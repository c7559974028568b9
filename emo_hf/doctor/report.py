"""What was found, in words and as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MARKS = {True: "ok    ", False: "FAILED", None: "  –   "}


@dataclass(frozen=True)
class Finding:
    """What one check has found; `passed` is None for what could not be checked and need not be."""

    name: str
    passed: bool | None
    said: str
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{MARKS[self.passed]}  {self.name}: {self.said}" + (f"\n        → {self.remedy}" * bool(self.remedy))


@dataclass
class Report:
    """Facts, by name, and what was checked."""

    facts: dict[str, Any]
    findings: list[Finding]

    def __str__(self) -> str:
        lines = []
        for name, value in self.facts.items():
            shown = value if isinstance(value, list) else [f"{value:.6g}" if isinstance(value, float) else value]
            lines += [f"{name if not i else '':<16}  {each}" for i, each in enumerate(shown or ["none"])]
        return "\n".join([*lines, "", *map(str, self.findings)])
