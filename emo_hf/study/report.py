"""The report of a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emo_hf.study.plan import Line, Plan, end_of
from emo_hf.study.schema import Study
from emo_hf.study.task import JUDGE


def write_report(study: Study, lines: Mapping[str, Line], folder: Path) -> list[Path]:
    """Write the losses of the fresh seeds, for each task and arm."""
    plan, text = Plan(study, lines), []
    for task in study.tasks.values():
        for judged in study.judged.values():
            ends = [f"{end_of(line, judged, JUDGE):.5g}" for line in plan.reported(task, judged)]
            text.append(f"{task.name}, {judged.name}, best rate {plan.rate(task, judged.name)}: {', '.join(ends)}")
    (folder / f"{study.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    return [folder / f"{study.name}.md"]
