"""Whether the runs of a study may be paired: same beginning, same data, same faults, same budget."""

from __future__ import annotations

from collections.abc import Sequence

from emo_hf.study.plan import Line
from emo_hf.study.specification import Study


def pairing_problems(study: Study, lines: Sequence[Line]) -> list[str]:
    """What should have been the same for all arms of a task, its twins with faults and a seed, and was not."""
    problems = []
    seen: dict[tuple[str, int], Line] = {}
    at: dict[tuple[str, int], list[int] | None] = {}
    for line in lines:
        first = seen.setdefault((study.tasks[line["task"]].tuned_as, line["seed"]), line)
        ours, theirs = line["fingerprint"], first["fingerprint"]
        length = min(len(ours["batches"]), len(theirs["batches"]))
        if ours["weights"] != theirs["weights"]:
            problems.append(f"{line['id']} and {first['id']} had different initial weights")
        if ours["batches"][:length] != theirs["batches"][:length]:
            problems.append(f"{line['id']} and {first['id']} had different data, or another order")
        faults = (line.get("faults") or {}).get("steps")
        others = at.setdefault((line["task"], line["seed"]), faults)
        if faults is not None and any(a != b for a, b in zip(faults, others or (), strict=False)):
            problems.append(f"{line['id']} had faults at other steps than the arms before")
        if line["planned_steps"] != first["planned_steps"]:
            problems.append(f"{line['id']} and {first['id']} had different budgets")
    return problems
