"""What a report says of faults and of decisions, of runs whose ends are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from emo_hf.study.analysis import Analysis
from emo_hf.study.decisions import decided
from emo_hf.study.fault_analysis import harm
from emo_hf.study.figure_marks import mark_decisions
from emo_hf.study.plan import Run, report_runs, tune_runs
from emo_hf.study.report import write_report
from emo_hf.study.specification import Study
from tests.study.studies import ARMS, FUNCTION, line, study

TOY = {"function": FUNCTION, "steps": 40}
ENDS: Mapping[tuple[str, str], list[float | None]] = {
    ("toy", "adamw"): [1.0, 2.0, 3.0],
    ("toy", "navi"): [1.0, 1.0, 1.0],
    ("ill", "adamw"): [1.1, 2.2, 3.3],
    ("ill", "navi"): [1.0, None, None],
}


def a_study() -> Study:
    return study(
        tasks={"toy": TOY, "ill": {**TOY, "faults": {"kind": "nan", "clean": "toy", "count": 3}}},
        learning_rates=[1, 2],
    )


def ended(run: Run, seed: int, skipped: int = 2, braked: int = 1) -> Mapping[str, Any]:
    found = {"kind": "nan", "steps": [10, 20, 38], "length": 1, "reach": 5}
    told = {"faults": found, "skipped_faults": skipped} if run.task.faults else {"faults": None}
    return line(run, ENDS[run.task.name, run.arm.name][seed], **told, braked=braked)


def lines_of(small: Study) -> dict[str, Mapping[str, Any]]:
    found = {run.id: line(run, run.rate) for run in tune_runs(small)}
    best = {("toy", arm): 1.0 for arm in small.arms}
    runs = report_runs(small, best, following=False)
    return found | {run.id: ended(run, small.seeds.to_report.index(run.seed)) for run in runs}


def test_faults_are_judged_against_the_same_arm_without_them_paired_by_seed() -> None:
    small = a_study()
    analysis = Analysis(small, lines_of(small))
    assert analysis.missing == analysis.pairing == []
    assert harm(analysis, "toy") == {}
    found = harm(analysis, "ill")
    adamw, navi = found["adamw"], found["navi"]
    assert adamw.interval is not None
    assert adamw.interval.mean == pytest.approx(0.1)
    assert [adamw.interval.low, adamw.interval.high] == pytest.approx([0.05, 0.15])
    assert (adamw.runs, adamw.diverged) == (3, 0)
    assert (adamw.skipped, adamw.faults) == (6, 9)
    assert (adamw.braked, adamw.clean) == (3, 3 * (40 - 6 - 6 - 3))  # the last fault is followed by two steps
    assert (adamw.braked_in_twin, adamw.steps_of_twin) == (3, 120)
    assert (navi.diverged, navi.clean_diverged, navi.interval) == (2, 0, None)


def test_the_report_has_a_table_of_faults_and_leaves_them_out_of_means_over_tasks(tmp_path: Path) -> None:
    small = a_study()
    lines = lines_of(small)
    write_report(small, lines, tmp_path)
    text = (tmp_path / "report.md").read_text()
    section = text.partition("\n## Faults\n")[2].partition("\n## ")[0]
    assert "3 times a run: one NaN in one gradient, against toy." in section
    rows = {row.split(" | ")[0]: row for row in section.splitlines() if row.startswith("| ")}
    assert rows["| adamw"] == (
        "| adamw | 0 of 3 | 2.2 ± 1.1 | 2 ± 1 | +10.00 % [+5.00, +15.00] | 6 of 9 | 4.00 % | 2.50 % |"
    )
    assert rows["| navi"].startswith("| navi | 2 of 3 | 1 | 1 ± 0 | – | 6 of 9 |")
    widths = text.partition("## Loss against learning rate")[2].partition("\n## ")[0]
    assert "### toy" in widths
    assert "### ill" not in widths  # it was run at one rate
    over_tasks = Analysis(small, lines).over_all_tasks("navi")
    assert over_tasks is not None  # though it diverged under faults
    assert over_tasks.mean == pytest.approx(-0.5)
    assert len(Analysis(small, lines).steps_to_target()["navi"]) == 3


def test_a_study_without_faults_says_nothing_of_them(tmp_path: Path) -> None:
    small = study()
    write_report(small, {run.id: line(run, 1.0) for run in tune_runs(small)}, tmp_path)
    assert not re.search("fault|What it decided", (tmp_path / "report.md").read_text())


def test_faults_at_other_steps_are_no_pair() -> None:
    small = a_study()
    lines = lines_of(small)
    last = lines["ill/navi/1/seed1001"]
    lines[last["id"]] = {**last, "faults": {**last["faults"], "steps": [10, 21]}}
    assert Analysis(small, lines).pairing == ["ill/navi/1/seed1001 had faults at other steps than the arms before"]
    lines[last["id"]] = {**last, "faults": {**last["faults"], "steps": [10, 20]}}  # it ended sooner
    assert Analysis(small, lines).pairing == []


LOGS: list[list[list[Any]]] = [
    [[4, "raised: nothing moves"], [6, "started: it moves"], [10, "easing: flat"], [12, "easing no more: not flat"],
     [20, "easing: flat"], [30, "skipped: a loss"], [31, "skipped: a loss"], [41, "done: flat"]],
    [[8, "started: it moves"], [14, "easing: flat"], [24, "come back: the loss has jumped"], [30, "eased: no better"]],
    [[12, "started: it moves"], [16, "easing: flat"], [24, "come back: the loss has jumped"], [40, "lowered: risen"]],
]  # fmt: skip


def emotion(decisions: list[list[Any]]) -> dict[str, Any]:
    spread = {"mean": 1.2, "sd": 0.1, "min": 1.0, "p05": 1.0, "median": 1.2, "p95": 1.5, "max": 1.6}
    return {
        "law": "settle", "sigma": spread, "coefficient": spread, "sigma_curve": [], "factors": [1.2] * 40,
        "decay_factors": [], "floor": 0.0, "decisions": decisions,
    }  # fmt: skip


def test_decisions_are_counted_and_their_steps_are_medians() -> None:
    small = study()
    runs = report_runs(small, {("toy", "navi"): 1e-3}, following=False)
    lines = [line(run, 1.0, emotion=emotion(log)) for run, log in zip(runs, LOGS, strict=True)]
    found = decided(lines)
    assert found is not None
    assert found.first == {"started": (8, 3), "easing": (14, 3), "come back": (24, 2), "done": (40, 1)}
    counts = {kind: round(3 * mean) for kind, mean in found.counts.items()}
    assert counts == {"raised": 1, "lowered": 1, "eased": 1, "come back": 2, "skipped": 2}
    assert decided([line(runs[0], 1.0, emotion=emotion([]))]) is None
    assert decided([line(runs[0], 1.0)]) is None


def test_the_report_says_what_was_decided(tmp_path: Path) -> None:
    small = study(arms={**ARMS, "other": ARMS["navi"]})
    best = {("toy", arm): 1e-3 for arm in small.arms}
    lines = {run.id: line(run, 1.0 if run.rate == 1e-3 else 2.0) for run in tune_runs(small)}
    old = emotion([])
    del old["decisions"]  # of a run from before they were kept
    for run in report_runs(small, best, following=False):
        log = LOGS[small.seeds.to_report.index(run.seed)]
        felt = {"adamw": None, "navi": emotion(log), "other": old}[run.arm.name]
        lines[run.id] = line(run, 1.0, emotion=felt)
    write_report(small, lines, tmp_path)
    section = (tmp_path / "report.md").read_text().partition("## What it decided")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| toy")]
    assert rows == ["| toy | navi | 8 | 35 % | 40 (1 of 3) | 0.333 | 0.333 | 0.333 | 0.667 | 0.667 |"]


def test_decisions_are_marked_where_half_of_the_runs_made_them_and_the_curve_is_in_sight() -> None:
    small = study()
    runs = report_runs(small, {("toy", "navi"): 1e-3}, following=False)
    lines = [line(run, 1.0, emotion=emotion(log)) for run, log in zip(runs, LOGS, strict=True)]
    panel = Figure().subplots()
    marks = mark_decisions(panel, lines, [0, 20, 40], [2.0, 1.0, 0.8], "red", 1.5)
    assert list(marks) == ["easing first", "come back first"]  # started: above the panel; done: in one run of three
    drawn = [drawn.get_xydata().tolist() for drawn in panel.lines if len(drawn.get_xydata())]
    assert drawn == [[pytest.approx([14, 1.3])], [pytest.approx([24, 0.96])]]
