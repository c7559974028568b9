"""From the runs of examine_claims.py to the figures and verdict of each claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from claims_runs import BASELINE, DAMAGES, MOMENTS, Trace
from claims_verdicts import (
    Correlation,
    adapter_verdict,
    bound_verdict,
    by_law_verdict,
    compare,
    correlate,
    detrended,
    moments_verdict,
    repair_verdict,
)

OPTIMIZERS = ("EmoNavi", "EmoLynx", "EmoFact")

Record = dict[str, Any]
Key = tuple[str, str, str, int]
"""Task, optimizer, kind (v3.1, shadow, none, mean; empty for AdamW), seed."""


def mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else 0.0


def by_task(
    runs: Mapping[Key, Record], value: Callable[[Record, Record], float], kinds: tuple[str, str]
) -> dict[str, list[float]]:
    """Task → for each seed, the mean over the optimizers of a value of two runs, such as their difference.

    Args:
        runs: all of them.
        value: (run of the first kind, run of the second kind) → what is averaged.
        kinds: such as `v3.1` and `none`; an empty second one is AdamW.
    """
    made: dict[str, list[float]] = {}
    for task, seed in dict.fromkeys((key[0], key[3]) for key in runs):
        pairs = [
            (runs[task, name, kinds[0], seed], runs[task, name if kinds[1] else BASELINE, kinds[1], seed])
            for name in OPTIMIZERS
        ]
        made.setdefault(task, []).append(mean([value(*pair) for pair in pairs]))
    return made


def acting(runs: Mapping[Key, Record]) -> dict[str, float]:
    """Task → share of the steps in which v3.1's c was not 1."""
    tasks = dict.fromkeys(key[0] for key in runs)
    return {task: mean([run["acts"] for key, run in runs.items() if (key[0], key[2]) == (task, "v3.1")])
            for task in tasks}  # fmt: skip


def examine_moments(runs: Mapping[Key, Record]) -> Record:
    """Claim 8; `other run`: c against the moments of the next seed, which share nothing with it but the trend."""
    rows = []
    for kind in ("v3.1", "none"):
        for task in dict.fromkeys(key[0] for key in runs):
            for moment in MOMENTS:
                row: Record = {"kind": kind, "task": task, "moment": moment}
                for way, change in (("raw", list), ("detrended", detrended)):
                    for label, of in (("", 0), (" other run", 1)):
                        row[way + label] = summed(correlations(runs, kind, task, moment, change, of, "felt"))
                    row[way + " σ"] = summed(correlations(runs, kind, task, moment, change, 0, "scalar"))
                rows.append(row)
    verdict = moments_verdict([row for row in rows if row["kind"] == "v3.1"])
    return {"verdict": verdict, "share of steps with c ≠ 1": acting(runs), "rows": rows}


def correlations(
    runs: Mapping[Key, Record], kind: str, task: str, moment: str, change: Callable[..., Any], of: int, series: str
) -> list[Correlation | None]:
    chosen = {key: run for key, run in runs.items() if key[0] == task and key[2] == kind}
    seeds = 1 + max(key[3] for key in chosen)
    made = []
    for (_, name, _, seed), run in chosen.items():
        trace: Trace = run["trace"]
        other: Trace = runs[task, name, kind, (seed + of) % seeds]["trace"]
        made.append(correlate(change(getattr(trace, series)), change(other.moments[moment])))
    return made


def summed(found: Sequence[Correlation | None]) -> Record:
    """Median ρ, how many are significant at 5 %, and of how many runs; a constant c counts as ρ = 0."""
    return {
        "rho": statistics.median(0.0 if each is None else each.rho for each in found),
        "significant": sum(each is not None and each.p < 0.05 for each in found),
        "runs": len(found),
    }


def examine_adapters(runs: Mapping[Key, Record]) -> Record:
    """Claim 9; log ratios are means over the layers."""
    acts, parts = acting(runs), {}
    for measured in ("effective rank", "stable rank", "norm"):

        def ratio(one: Record, other: Record, measured: str = measured) -> float:
            pairs = zip(one["adapter"], other["adapter"], strict=True)
            return mean([math.log(a[measured] / b[measured]) for a, b in pairs])

        differences = {other: by_task(runs, ratio, ("v3.1", other)) for other in ("none", "mean")}
        pooled = compare(differences)
        against_mean = [ratio(run, runs[t, n, "mean", s]) for (t, n, k, s), run in runs.items() if k == "v3.1"]
        parts[measured] = {
            "verdict": adapter_verdict(pooled["none"], pooled["mean"], against_mean, max(acts.values())),
            "pooled": pooled,
            "largest |log(v3.1 / mean)|": max(map(abs, against_mean)),
            "tasks": {
                task: {
                    "none": mean([layer[measured] for key, run in runs.items() if (key[0], key[2]) == (task, "none")
                                  for layer in run["adapter"]]),
                    "log ratio": compare({other: {task: of[task]} for other, of in differences.items()}),
                }
                for task in acts
            },
        }  # fmt: skip
    verdicts = {part["verdict"] for part in parts.values()}
    overall = verdicts.pop() if len(verdicts) == 1 else "not shown"
    factors = {task: mean([run["factor"] for key, run in runs.items() if (key[0], key[2]) == (task, "v3.1")])
               for task in acts}  # fmt: skip
    return {"verdict": overall, "share of steps with c ≠ 1": acts, "mean c": factors, "parts": parts}


def examine_repair(runs: Mapping[Key, Record]) -> Record:
    """Claim 11; each contrast has its own family of Holm."""
    contrasts = {"v3.1 − none": ("v3.1", "none"), "v3.1 − AdamW": ("v3.1", ""), "shadow − v3.1": ("shadow", "v3.1")}
    measures = {
        "log steps": lambda run, name: math.log(run["damage"][name]["steps"]),
        "excess loss": lambda run, name: run["damage"][name]["excess"],
        "log end loss": lambda run, name: run["damage"][name]["end"],
    }
    compared = {
        contrast: compare(
            {
                f"{name}: {label}": by_task(runs, lambda a, b, name=name, of=of: of(a, name) - of(b, name), kinds)
                for name in DAMAGES
                for label, of in measures.items()
            }
        )
        for contrast, kinds in contrasts.items()
    }
    medians: list[Record] = []
    for name in DAMAGES:
        for arm in dict.fromkeys((key[1], key[2]) for key in runs):
            of_arm = [run["damage"][name] for key, run in runs.items() if key[1:3] == arm]
            row = {field: statistics.median(each[field] for each in of_arm) for field in of_arm[0]}
            never = sum(each["steps"] > each["of"] for each in of_arm)
            medians.append({"damage": name, "arm": " ".join(arm).strip(), "never": never, "runs": len(of_arm), **row})
    verdict = repair_verdict(compared["v3.1 − none"], list(DAMAGES))
    return {"verdict": verdict, "compared": compared, "medians": medians}


def examine_steps(runs: Mapping[Key, Record]) -> Record:
    """Claim 12."""
    tasks = list(dict.fromkeys(key[0] for key in runs))
    fields = ("largest", "largest after spike", "path after spike")
    rows = []
    for arm in dict.fromkeys(key[1:3] for key in runs if key[2] not in ("mean", "shadow")):
        for task in tasks:
            of_arm = [run for key, run in runs.items() if key[0] == task and key[1:3] == arm]
            row = {field: max(run[field] for run in of_arm) for field in (*fields, "bound")}
            rows.append({"arm": " ".join(arm).strip(), "task": task, **row})
    compared = compare(
        {field: by_task(runs, lambda a, b, of=field: math.log(a[of] / b[of]), ("v3.1", "none"))
         for field in fields}
    )  # fmt: skip
    shares = [max(row["largest"], row["largest after spike"]) / row["bound"] for row in rows if "v3.1" in row["arm"]]
    law = {field: by_law_verdict(compared[field]) for field in ("largest", "largest after spike")}
    return {"verdict": bound_verdict(shares), "by the emotion": law, "log v3.1 / none": compared, "rows": rows}
