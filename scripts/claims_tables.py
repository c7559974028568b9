"""What examine_claims.py found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Claim = Mapping[str, Any]


def tables(claims: Mapping[str, Claim]) -> str:
    """All claims, each with its verdict and its figures."""
    makers = {"8": _moments, "9": _adapters, "11": _repair, "12": _steps}
    lines: list[str] = []
    for number in claims:
        maker = makers[number]
        lines += ["", f"**Claim {number}: {claims[number]['verdict']}**", "", *maker(claims[number])]
    return "\n".join(lines[1:])


def _moments(claim: Claim) -> Iterator[str]:
    acts = ", ".join(f"{task} {share:.0%}" for task, share in claim["share of steps with c ≠ 1"].items())
    yield f"c ≠ 1 in these shares of the steps: {acts}. Median ρ over the runs (significant of all)."
    yield ""
    yield "| c felt under | task | moment | ρ | ρ, other run's moments | detrended ρ | other run | detrended ρ(σ) |"
    yield "|---|---|---|---|---|---|---|---|"
    ways = ("raw", "raw other run", "detrended", "detrended other run", "detrended σ")
    for row in claim["rows"]:
        cells = [f"{row[way]['rho']:+.2f} ({row[way]['significant']}/{row[way]['runs']})" for way in ways]
        yield f"| {row['kind']} | {row['task']} | {row['moment']} | {' | '.join(cells)} |"


def _adapters(claim: Claim) -> Iterator[str]:
    acts = [f"{task} {claim['mean c'][task]:.2f}, {share:.0%}" for task, share in
            claim["share of steps with c ≠ 1"].items()]  # fmt: skip
    yield f"Mean c, and share of the steps with c ≠ 1: {'; '.join(acts)}."
    yield ""
    yield "| ΔW | task | with `none` | log(v3.1 / none) | log(v3.1 / its mean c) | largest of a run | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for name, part in claim["parts"].items():
        for task, of in part["tasks"].items():
            none, mean = (_difference(of["log ratio"][other]) for other in ("none", "mean"))
            yield f"| {name} | {task} | {of['none']:.3g} | {none} | {mean} | | |"
        none, mean = (_difference(part["pooled"][other]) for other in ("none", "mean"))
        yield f"| {name} | both | | {none} | {mean} | {part['largest |log(v3.1 / mean)|']:.3f} | {part['verdict']} |"


def _repair(claim: Claim) -> Iterator[str]:
    yield "| damage | arm | steps to recover (undamaged) | never | excess loss | log end loss | change of mean c |"
    yield "|---|---|---|---|---|---|---|"
    for row in claim["medians"]:
        yield (
            f"| {row['damage']} | {row['arm']} | {row['steps']:.0f} ({row['steps undamaged']:.0f}) "
            f"| {row['never']}/{row['runs']} | {row['excess']:+.3f} | {row['end']:+.3f} | {row['c']:+.2f} |"
        )
    contrasts = list(claim["compared"])
    yield from ("", f"| difference | {' | '.join(contrasts)} |", "|---" * (1 + len(contrasts)) + "|")
    for question in claim["compared"][contrasts[0]]:
        cells = [_difference(claim["compared"][contrast][question]) for contrast in contrasts]
        yield f"| {question} | {' | '.join(cells)} |"


def _steps(claim: Claim) -> Iterator[str]:
    law = ", ".join(f"{field} {verdict}" for field, verdict in claim["by the emotion"].items())
    yield f"Smaller by the emotion: {law}. Largest of the seeds, over lr."
    yield ""
    yield "| arm | task | largest step | after a spike | 32 steps after it, added up | bound of the rule |"
    yield "|---|---|---|---|---|---|"
    for row in claim["rows"]:
        values = [row[of] for of in ("largest", "largest after spike", "path after spike", "bound")]
        yield f"| {row['arm']} | {row['task']} | {' | '.join(f'{value:.3g}' for value in values)} |"
    yield ""
    for name, compared in claim["log v3.1 / none"].items():
        yield f"- log(v3.1 / none) of {name}: {_difference(compared)}"


def _difference(compared: Claim) -> str:
    """Mean, interval and adjusted p; starred where both leave out 0."""
    low, high = compared["low"], compared["high"]
    if low is None or high is None:
        return f"{compared['mean']:+.3f} (one seed)"
    star = " *" if not low <= 0 <= high and compared["p"] < 0.05 else ""
    return f"{compared['mean']:+.3f} ({low:+.3f} … {high:+.3f}), p {compared['p']:.2g}{star}"
