"""What a report says of the decisions of laws that decide in words."""

from __future__ import annotations

from emo_hf.study.analysis import Analysis
from emo_hf.study.decisions import COME_BACK, COUNTED, DONE, EASING, STARTED, Decided, decided
from emo_hf.study.document import Block, Heading, Table, Text
from emo_hf.study.figures import Figures
from emo_hf.study.wording import NOTHING


def decisions_section(analysis: Analysis, figures: Figures) -> list[Block]:
    rows = []
    for task in analysis.study.tasks:
        for arm in analysis.study.arms:
            found = decided(analysis.reported(task, arm))
            if found is not None:
                rows.append([task, arm, *_cells(found)])
    if not rows:
        return []
    header = ["task", "arm", "started at step", "easing first at", "done at step", *COUNTED[:3], COME_BACK, "skipped"]
    return [
        Heading("What it decided"),
        Text(
            "Steps are medians over the runs in which it was decided, with their number where not all did; “easing "
            "first at” is a share of the budget. The other columns are means a run: rates raised and lowered, eased "
            "after an evaluation, come back after other data, steps skipped. Hollow marks on the curves against steps "
            "are at the same medians, where at least half of an arm's runs decided so. All decisions in words: "
            "`emotion.decisions` in `runs.jsonl`."
        ),
        Table(header, rows, words=2),
    ]


def _cells(found: Decided) -> list[str]:
    share = {EASING: f"{100 * found.first[EASING][0] / found.steps:.0f} %"} if EASING in found.first else {}
    cells = []
    for kind in (STARTED, EASING, DONE):
        if kind not in found.first:
            cells.append(NOTHING)
            continue
        step, runs = found.first[kind]
        some = f" ({runs} of {found.runs})" if runs < found.runs else ""
        cells.append(share.get(kind, f"{step:,.0f}") + some)
    return [*cells, *(f"{found.counts[kind]:.3g}" for kind in COUNTED)]
