"""What a check has found, in words and as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has found.

    Attributes:
        name: of the check.
        said: what was found.
        passed: False for something wrong; None for something that is not there and need not be.
        remedy: what to do about it.
    """

    name: str
    said: str
    passed: bool | None = True
    remedy: str | None = None

    def text(self) -> str:
        """As it is printed."""
        mark = {True: "ok    ", False: "FAILED", None: "  –   "}[self.passed]
        lines = [f"{mark}  {self.name}: {self.said}"]
        return "\n".join([*lines, f"        → {self.remedy}"] if self.remedy else lines)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found out.

    Attributes:
        facts: heading → name → value.
        findings: what was checked.
    """

    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    findings: Sequence[Finding] = ()

    @property
    def exit_code(self) -> int:
        """1 if something is wrong, otherwise 0."""
        return int(any(finding.passed is False for finding in self.findings))

    def text(self) -> str:
        """As it is printed: facts in two columns under their headings, then the findings."""
        lines: list[str] = []
        for heading, facts in self.facts.items():
            width = max(map(len, facts), default=0)
            lines.append(heading)
            for name, value in facts.items():
                first, *more = shown(value)
                lines += [f"  {name:<{width}}  {first}", *(" " * (width + 4) + line for line in more)]
            lines.append("")
        return "\n".join([*lines, *(finding.text() for finding in self.findings)])

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        findings = [
            {"name": found.name, "passed": found.passed, "said": found.said, "remedy": found.remedy}
            for found in self.findings
        ]
        facts = {heading: dict(values) for heading, values in self.facts.items()}
        return {"fine": not self.exit_code, "facts": facts, "findings": findings}


def shown(value: Any) -> list[str]:
    """A value as the lines of a column."""
    if isinstance(value, (list, tuple)):
        return [str(one) for one in value] or ["none"]
    if isinstance(value, bool) or value is None:
        return [{True: "yes", False: "no", None: "–"}[value]]
    return [f"{value:.6g}" if isinstance(value, float) else str(value)]


def checked(name: str, check: Callable[[], str]) -> Finding:
    """What a check says; what it raises is a finding too, so that the user sees the other checks."""
    try:
        return Finding(name=name, said=check())
    except Exception as error:  # noqa: BLE001  whatever is broken, it shall be read
        return Finding(name=name, passed=False, said=f"{type(error).__name__}: {error}")
