"""What was found, in words and as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Report:
    """Facts, by name, and what was checked."""

    facts: Mapping[str, Any]
    findings: Sequence[Finding]

    @property
    def exit_code(self) -> int:
        """1 if something is wrong, otherwise 0."""
        return int(any(finding.passed is False for finding in self.findings))

    def __str__(self) -> str:
        lines = []
        for name, value in self.facts.items():
            shown = value if isinstance(value, list) else [f"{value:.6g}" if isinstance(value, float) else value]
            lines += [f"{name if not i else '':<16}  {each}" for i, each in enumerate(shown or ["none"])]
        return "\n".join([*lines, "", *map(str, self.findings)])

    def json(self) -> str:
        """As plain values."""
        found = {"fine": not self.exit_code, "facts": dict(self.facts), "findings": list(map(asdict, self.findings))}
        return json.dumps(found, indent=2)
