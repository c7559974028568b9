"""The report of a study: what is said, in which order. What it rests on is in analysis.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from emo_hf.study.analysis import Analysis
from emo_hf.study.differences import NO_DIFFERENCE, SIGNIFICANT
from emo_hf.study.document import Block, Heading, Table, Text
from emo_hf.study.estimate import in_words
from emo_hf.study.figures import Figures
from emo_hf.study.html import page
from emo_hf.study.markdown import markdown
from emo_hf.study.plan import Line, end_of
from emo_hf.study.report_behaviour import cost_section, emotion_section, stopping_section
from emo_hf.study.report_decisions import decisions_section
from emo_hf.study.report_faults import faults_section
from emo_hf.study.report_losses import against_rates, against_steps, pairs, profile_section, what_was_found
from emo_hf.study.specification import ALL, Study
from emo_hf.study.wording import NOTHING, amount

MARKDOWN, PAGE = "report.md", "report.html"


def write_report(study: Study, lines: Mapping[str, Line], folder: Path) -> list[Path]:
    """Write `report.md`, its pictures and `report.html`.

    Args:
        study: the study.
        lines: id → line of its runs.
        folder: where to.

    Returns:
        The Markdown and the page.
    """
    analysis = Analysis(study, lines)
    blocks = report(analysis, Figures(analysis, folder))
    (folder / MARKDOWN).write_text(markdown(blocks), encoding="utf-8")
    (folder / PAGE).write_text(page(blocks, f"Study {study.name}", folder), encoding="utf-8")
    return [folder / MARKDOWN, folder / PAGE]


def report(analysis: Analysis, figures: Figures) -> list[Block]:
    """All blocks; draws the pictures on the way."""
    sections = (
        what_was_found,
        pairs,
        against_rates,
        against_steps,
        profile_section,
        faults_section,
        stopping_section,
        emotion_section,
        decisions_section,
        cost_section,
    )
    blocks: list[Block] = [Heading(f"Study {analysis.study.name}", 1), *_head(analysis)]
    for section in sections:
        blocks += section(analysis, figures)
    return [*blocks, *_method(analysis.study), *_runs(analysis)]


def _head(analysis: Analysis) -> list[Block]:
    study, lines = analysis.study, analysis.lines
    total = sum(line["seconds"] for line in lines)
    blocks: list[Block] = [
        Text(
            f"{amount(len(lines), 'run')} of {amount(len(study.arms), 'arm')} on {amount(len(study.tasks), 'task')}, "
            f"{in_words(total)} of work in all. Every arm is compared with **{study.reference}** at the end of "
            "training, on data that is held out, each at its own tuned learning rate."
        )
    ]
    if analysis.missing:
        failed = f", {len(analysis.failed)} of them failed" if analysis.failed else ""
        missing = amount(len(analysis.missing), "planned run")
        blocks.append(Text(f"**Not complete:** {missing} missing{failed}. The same command goes on."))
    return [*blocks, *(Text(f"**Not paired:** {problem}.") for problem in analysis.pairing[:10])]


def _method(study: Study) -> list[Block]:
    at = "at every rate" if study.report_rates == ALL else "at the best of them"
    return [
        Heading("How it was done"),
        Text(
            f"Each arm's learning rate was tuned over its rates on {amount(study.seeds.tune, 'seed')}, by the "
            f"evaluation loss at the end; then {amount(study.seeds.report, 'fresh seed')} were run {at}. For one seed "
            "all arms had the same initial weights, the same data in the same order and the same number of steps, "
            "which is checked by sums over weights and batches. Arms that replay or average another arm's factors "
            "run at that arm's rate."
        ),
        Text(
            "Differences are paired by seed: (arm − reference) / mean of the reference, with the percentile "
            "bootstrap interval of `scipy.stats.bootstrap`. Intervals of so few values are too narrow, so a verdict "
            "asks for more: the interval must leave out 0, and the p-value of the paired t-test, after Holm over the "
            f"arms of the task, must be below {SIGNIFICANT:g}. Everything else is “{NO_DIFFERENCE}”."
        ),
        Text(
            "A run that ends without a finite loss has diverged; an arm that diverged in more seeds than the "
            "reference is worse. The mean over tasks draws seeds anew within each task: it speaks of these tasks "
            "only."
        ),
    ]


def _runs(analysis: Analysis) -> list[Block]:
    rows = []
    for line in analysis.lines:
        end = "diverged" if line["diverged"] else f"{end_of(line):.5g}"
        best = NOTHING if line["best"] is None else f"{line['best']:.5g} at {line['best_step']:,}"
        rows.append([line["id"], line["phase"], f"{line['steps']:,}", end, best, f"{line['seconds']:.1f}"])
    blocks: list[Block] = [
        Heading("All runs"),
        Text("As data, with curves and factors: `runs.jsonl`, one JSON object a line."),
        Table(
            ["run", "phase", "steps", "loss at the end", "lowest", "seconds"],
            rows,
            words=2,
            folded=f"{len(rows)} runs",
        ),
    ]
    if analysis.failed:
        failures = [[line["id"], str(line["error"])] for line in analysis.failed]
        blocks += [Heading("Runs that failed", 3), Table(["run", "what it said"], failures, words=2)]
    return [*blocks, *_versions(analysis)]


def _versions(analysis: Analysis) -> list[Block]:
    found = Counter(
        ", ".join(f"{name} {version}" for name, version in line["versions"].items())
        + f"; {line['machine']['device']}, {amount(line['machine']['threads'], 'thread')}"
        for line in analysis.lines
    )
    return [Text(f"{amount(number, 'run')} with {what}.") for what, number in found.most_common()]
