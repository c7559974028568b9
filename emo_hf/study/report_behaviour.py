"""What a report says of how the arms behaved: stopping, emotion, cost."""

from __future__ import annotations

import statistics

from emo_hf.study.analysis import Analysis
from emo_hf.study.document import Block, Heading, Picture, Table, Text
from emo_hf.study.figures import Figures
from emo_hf.study.stopping import PATIENCE, STILL_IMPROVED
from emo_hf.study.wording import NOTHING, amount, percent


def stopping_section(analysis: Analysis, figures: Figures) -> list[Block]:
    rows, never = [], []
    for task in analysis.study.tasks:
        for arm, rules in analysis.stopping(task).items():
            for name, verdict in rules.items():
                if not verdict.stopped:
                    never.append(f"{arm} on {task} by the {name}")
                    continue
                lost = [percent(verdict.lost), percent(verdict.lost_to_best)]
                alarms = f"{verdict.false_alarms} of {verdict.stopped}"
                stopped = f"{verdict.stopped} of {verdict.runs}"
                rows.append([task, arm, name, stopped, percent(verdict.saved), *lost, alarms])
    if not rows and not never:
        return []
    header = [
        "task",
        "arm",
        "rule",
        "stopped",
        "time saved",
        "loss, full run",
        "loss, best on the way",
        "false alarms",
    ]
    blocks: list[Block] = [
        Heading("Stopping"),
        Text(
            "What each rule would have done to runs that went on to their end. Time saved is a mean over all runs; "
            "the losses, over those in which it stopped, are against the end of the full run and against the best "
            f"along the way. The evaluations that early stopping (patience {PATIENCE}) needs are counted as time. A "
            "false alarm stops before half of the improvement, or although the evaluation loss still fell by more "
            f"than {100 * STILL_IMPROVED:g} % afterwards. An arm's own end is judged against the reference's full run."
        ),
    ]
    if rows:
        blocks.append(Table(header, rows, words=3))
    if never:
        folded = f"{amount(len(never), 'rule')} that never stopped a run"
        blocks.append(Table(["arm, task and rule"], [[text] for text in never], folded=folded))
    return blocks


def emotion_section(analysis: Analysis, figures: Figures) -> list[Block]:
    rows = []
    for task in analysis.study.tasks:
        for arm in analysis.study.arms:
            lines = [line for line in analysis.reported(task, arm) if line["emotion"]]
            if not lines:
                continue
            mean = {
                part: {
                    key: statistics.fmean(line["emotion"][part][key] for line in lines)
                    for key in ("mean", "p05", "p95")
                }
                for part in ("sigma", "coefficient")
            }
            c, sigma = mean["coefficient"], mean["sigma"]
            laws = ", ".join(sorted({_short_law(line["emotion"]["law"]) for line in lines}))
            rows.append(
                [task, arm, laws, f"{c['mean']:.3g}", f"{c['p05']:.3g} to {c['p95']:.3g}", f"{sigma['mean']:+.3f}",
                 f"{sigma['p05']:+.2f} to {sigma['p95']:+.2f}"]
            )  # fmt: skip
    if not rows:
        return []
    blocks: list[Block] = [Heading("What the emotion did")]
    if figures.factors("factors.png"):
        blocks.append(Picture("factors.png", "The factor on the learning rate against steps, for each task and arm"))
    header = ["task", "arm", "law", "factor: mean", "5 to 95 % of steps", "σ: mean", "5 to 95 % of steps"]
    return [*blocks, Table(header, rows, words=3)]


def _short_law(law: str) -> str:
    kind, _, rest = law.partition(":")
    if kind == "replay":
        return f"replay of {rest.partition('#')[2].rpartition('/')[0]}"
    return kind if kind == "constant" else law  # the factor's mean stands beside it


def cost_section(analysis: Analysis, figures: Figures) -> list[Block]:
    if not figures.costs("costs.png"):
        return []
    rows = []
    for task in analysis.study.tasks:
        for arm in analysis.study.arms:
            cost = analysis.cost(task, arm)
            if cost is None:
                continue
            inside = NOTHING if cost.optimizer_seconds is None else f"{1e3 * cost.optimizer_seconds:.3g} ms"
            peak = NOTHING if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**20:,.0f} MiB"
            rows.append(
                [task, arm, f"{1e3 * cost.step_seconds:.3g} ms", inside, f"{cost.state_bytes_per_parameter:.2f}", peak]
            )
    header = [
        "task",
        "arm",
        "a step",
        "in the optimizer",
        "state, bytes per trained parameter",
        "peak memory of the process",
    ]
    return [
        Heading("Cost"),
        Picture("costs.png", "Time of a step and of the optimizer in it, for each task and arm"),
        Table(header, rows, words=2),
        Text("Medians. Runs that were done at the same time share the machine: small differences mean nothing here."),
    ]
