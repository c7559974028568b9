"""What is said of a study's runs, and that page and figure show it, whatever the names are."""

from __future__ import annotations

import gzip
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import publish_study

from emo_hf.study.analysis import WRONG, Analysis
from emo_hf.study.figures import words
from emo_hf.study.plan import Plan, Run
from emo_hf.study.report import data, write_report
from emo_hf.study.results import Results
from tests.study.studies import ARMS, CONSTANT, TASK, bowl, content, line, played, quarter, study

TASKS = {name: {**TASK, "noise": noise} for name, noise in (("one", 0.1), ("two", 0.2), ("three", 0.3))}
EFFECT = {"one": -0.1, "two": 0.0, "three": 0.1}


def analysed(end: Any, line: Any = None, **changes: Any) -> Analysis:
    """A small study with these changes, run to these ends; `line` is what else its lines say."""
    small = study(**changes)
    return Analysis(small, played(small, end, **(line or {}))[1])


def effects(run: Run) -> float:
    """navi is better on one task, worse on another; the seeds hardly matter."""
    effect = EFFECT[run.task.name] if run.arm.name == "navi" else 0.0
    return bowl(run, -8) * (1 + effect + 0.001 * (run.seed % 3))


def mean_of(found: Any) -> float:
    """The mean of an interval that is there, which may come with a number beside it."""
    return float((found[0] if isinstance(found, tuple) else found).mean)


def test_differences_are_those_of_tasks_and_their_mean_has_the_spread_over_tasks() -> None:
    analysis = analysed(effects, tasks=TASKS)
    navi = analysis.judged["navi"]
    for task in analysis.tuned_tasks:
        result = analysis.results(task)["navi"]
        assert mean_of(result.difference) == pytest.approx(EFFECT[task.name], abs=2e-3)
        assert result.clear == (task.name != "two")
        assert not result.at_edge
    overall, tasks = analysis.difference(navi, analysis.reference)
    assert overall is not None
    assert mean_of(analysis.difference(analysis.reference, navi)) == pytest.approx((1 / 9 - 1 / 11) / 3, abs=1e-3)
    assert (overall.mean, tasks) == (pytest.approx(0.0, abs=2e-3), 3)
    assert (overall.low < -0.05, overall.high > 0.05) == (True, True)
    edge = analysed(lambda run: bowl(run, 20) - 9)
    assert edge.results(edge.study.tasks["toy"])["adamw"].at_edge


def test_lost_runs_are_counted_and_in_no_mean() -> None:
    def end(run: Run) -> float | None:
        better = 0.9 if run.arm.name == "navi" else 1.0
        return None if run.arm.name == "navi" and run.seed == 1002 else bowl(run, -8) * better

    analysis = analysed(end)
    navi, result = analysis.judged["navi"], analysis.results(analysis.study.tasks["toy"])["navi"]
    assert (result.runs, result.lost, result.ends) == (3, 1, [0.9, 0.9])
    assert mean_of(result.difference) == mean_of(analysis.difference(navi, analysis.reference)) == pytest.approx(-0.1)
    assert analysis.lost(navi) == (1, 3)
    everywhere = analysed(lambda run: None if run.seed > 1000 and run.arm.name == "navi" else 1.0)
    assert everywhere.difference(navi, everywhere.reference) == (None, 0)


def test_wrong_rates_are_read_from_the_tuning_runs_on_the_half_that_judges() -> None:
    arms = {**ARMS, "scale": {"optim": "emosens", "learning_rates": [0.001, 10]}}
    best = {"adamw": -8, "navi": -11, "scale": -4}
    analysis = analysed(lambda run: bowl(run, best[run.arm.name]), arms=arms)
    wrong = {name: [analysis.wrong(judged, by) for by in WRONG.values()] for name, judged in analysis.judged.items()}
    assert wrong["adamw"] == wrong["scale"] == [(pytest.approx(cost), 0) for cost in (0.16, 0.04, 0.04, 0.16)]
    assert wrong["navi"][2][0] == pytest.approx(0.05), "half-way between the rates beside it: (0.01 + 0.09)/2"
    assert analysis.losses(analysis.study.tasks["toy"], analysis.reference)[-8] == 1.0, "not that of the other half"
    untuned = [analysis.untuned(judged) for judged in analysis.judged.values()]
    assert untuned[0] == (pytest.approx((0.04 + 0.0 + 0.04) / 3), 0)
    assert untuned[1] == (pytest.approx((0.01 + 0.09 + 0.25) / 3), 0)
    assert math.isnan(untuned[2][0]), "rates of another kind are not compared"
    lost = analysed(lambda run: None if quarter(run) > -8 else bowl(run, -8))
    assert math.isnan(lost.wrong(lost.reference, WRONG["× 3"])[0])
    assert [lost.wrong(lost.reference, WRONG[by])[1] for by in ("× 3", "÷ 3")] == [1, 0]


def test_what_an_arm_saves_that_ends_its_runs_itself() -> None:
    small = study(arms={**ARMS, "ends": {**CONSTANT, "emotion": "settle", "self_stop": "stop"}})
    _, lines = played(small, lambda run: bowl(run, -8))
    for found in lines.values():
        if found["arm"] == "ends" and found["seed"] > 1000:
            end = 1.05 if found["seed"] == 1001 else 1.005
            curves = {half: [[0, 2.0], [10, end]] for half in ("tune", "judge")}
            lines[found["key"]] = {**found, "steps": 10, "curves": {"weights": curves}}
    analysis = Analysis(small, lines)
    stops = analysis.stops(small.tasks["toy"], small.judged["ends"])
    assert stops is not None
    assert (stops.runs, stops.stopped, stops.false_alarms, stops.saved) == (3, 3, 1, pytest.approx(0.75))
    assert analysis.stops(small.tasks["toy"], small.judged["navi"]) is None


def test_a_task_with_faults_is_set_against_its_twin_and_is_in_no_mean_over_tasks() -> None:
    worse = {"adamw": 1.5, "navi": 1.1}

    def end(run: Run) -> float:
        return bowl(run, -8) * (worse[run.arm.name] if run.task.name == "hard" else 1.0)

    tasks = {"toy": TASK, "hard": {**TASK, "noise": 0.5, "rates_of": "toy"}}
    analysis = analysed(end, {"extra": {"faults": 4, "kind": "nan"}}, tasks=tasks)
    hard = analysis.study.tasks["hard"]
    for name, factor in worse.items():
        assert mean_of(analysis.harm(hard, analysis.judged[name])) == pytest.approx(factor - 1)
        assert analysis.extra(hard, analysis.judged[name]) == {"faults": 4.0}
    assert mean_of(analysis.difference(analysis.judged["navi"], analysis.reference)) == 0.0


def test_runs_that_should_have_been_paired_and_were_not_are_named() -> None:
    small = study()
    plan, lines = played(small, lambda run: bowl(run, -8))
    assert Analysis(small, lines).pairing_problems() == []
    run = next(run for run in plan.runs() if run.arm.name == "navi" and run.seed == 1002 and run.key in lines)
    lines[run.key] = line(run, 1.0, fingerprint={"weights": 7, "batches": [8]})
    first, second = Analysis(small, lines).pairing_problems()
    assert "seed1002" in first
    assert first.endswith("had different initial weights")
    assert second.endswith("had different data, or another order")


def tables_are_whole(text: str) -> bool:
    """Whether all rows of each table have as many cells."""
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return len(tables) > 3 and all(len({row.count("|") for row in rows}) == 1 for rows in tables)


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    small = study(tasks=TASKS, pairs=[["navi", "adamw"]])
    _, lines = played(small, effects, decisions=[{"step": 3, "kind": "lowered", "factor": 0.3, "reason": "x"}])
    page, picture = write_report(small, lines, tmp_path)
    text = page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| navi")]
    assert re.fullmatch(r"[+−]0\.\d \(−1\d\.\d to \+1\d\.\d\)", rows[0][1]), rows[0]
    assert "| adamw | reference | 3 | 0 of 9 |" in text
    for said in (f"]({picture.name})", "### one", "**−10.0 (", "lowered", "## Pairs"):
        assert said in text
    assert not re.search(r"Runs that an arm has ended|Not complete|Against the twin", text)
    assert tables_are_whole(text)
    incomplete = dict(list(lines.items())[:5])
    assert "**Not complete:**" in write_report(small, incomplete, tmp_path)[0].read_text()


HOSTILE = ["<!--<script>", "p_$\\frac{$", "a|b`*_[x](y)", "$x^2$", "_hidden", "名前", "two\nlines"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_data_in_page_and_figure(tmp_path: Path) -> None:
    arms = {name: CONSTANT | {"weight_decay": i / 10} for i, name in enumerate(HOSTILE)}
    tasks = {name: {**TASK, "noise": i / 10} for i, name in enumerate(HOSTILE[:2])}
    small = study(arms=arms, tasks=tasks, reference=HOSTILE[0], pairs=[HOSTILE[:2]])
    decision = {"step": 1, "kind": "<b>", "factor": 1, "reason": ""}
    _, lines = played(small, lambda run: bowl(run, -8), decisions=[decision])
    page, picture = write_report(small, lines, tmp_path)
    text = page.read_text()
    for name in [*HOSTILE, "<b>"]:
        assert name not in text or name.isalnum()
        assert data(name) in text
        assert re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), data(name)) == name
    assert picture.stat().st_size > 10_000
    assert tables_are_whole(text)
    for name in HOSTILE:
        drawn = Figure().text(0, 0, words(name))
        assert drawn._preprocess_math(drawn.get_text()) == (name, False), "matplotlib reads no formula"


def test_studies_are_published_with_all_of_their_runs_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, small, results = tmp_path / "small.yaml", study(tasks=TASKS), Results(tmp_path)
    file.write_text(yaml.safe_dump(content(tasks=TASKS)))
    _, lines = played(small, effects, losses=[[step, 1.0] for step in range(1, 101)])
    for found in [*lines.values(), {**line(Plan(study(), {}).open[0], 1.0), "key": "of another study"}]:
        results.append(found)
    arguments = [str(tmp_path), str(file), "--to", str(tmp_path / "docs")]
    assert publish_study.main(arguments) == 0
    published = gzip.decompress((tmp_path / "docs" / "runs.jsonl.gz").read_bytes())
    kept = [json.loads(text) for text in published.splitlines()]
    assert {found["key"] for found in kept} == lines.keys()
    assert all(len(found["losses"]) == 25 and found["losses"][-1] == [100, 1.0] for found in kept)
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {"runs.jsonl.gz", "small.md", "small.png"}
    again, before = Analysis(small, {found["key"]: found for found in kept}), Analysis(small, lines)
    task, navi = small.tasks["one"], small.judged["navi"]
    assert again.results(task) == before.results(task)
    assert again.difference(navi, again.reference) == before.difference(navi, before.reference)
    monkeypatch.setattr(publish_study, "MOST_BYTES", 1000)
    assert publish_study.main(arguments) == 1
    assert "is larger than" in capsys.readouterr().err
