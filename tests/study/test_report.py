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

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import publish_study

from emo_hf.study.analysis import Analysis
from emo_hf.study.figures import words
from emo_hf.study.plan import Plan, Run
from emo_hf.study.report import data, write_report
from emo_hf.study.results import Results
from emo_hf.study.schema import Study, parse_study
from tests.study.studies import ARMS, FUNCTION, content, line, played, study

CONSTANT = {"optim": "adamw_torch", "lr_scheduler_type": "constant"}
TASK = {"function": FUNCTION, "steps": 8}


def quarter(run: Run) -> int:
    return round(4 * math.log10(run.rate))


def bowl(run: Run, best: int, depth: float = 1.0) -> float:
    return depth + 0.01 * (quarter(run) - best) ** 2


def analysed(small: Study, end: Any, **changes: Any) -> Analysis:
    _, lines = played(small, end, **changes)
    return Analysis(small, lines)


TASKS = {name: {**TASK, "noise": noise} for name, noise in (("one", 0.1), ("two", 0.2), ("three", 0.3))}
EFFECT = {"one": -0.1, "two": 0.0, "three": 0.1}


def effects(run: Run) -> float:
    """navi is better on one task, worse on another; the seeds hardly matter."""
    effect = EFFECT[run.task.name] if run.arm.name == "navi" else 0.0
    return bowl(run, -8) * (1 + effect + 0.001 * (run.seed % 3))


def test_the_interval_of_a_mean_over_tasks_has_the_spread_over_tasks() -> None:
    analysis = analysed(study(tasks=TASKS), effects)
    results = {task.name: analysis.results(task)["navi"] for task in analysis.tuned_tasks}
    for name, result in results.items():
        assert result.difference is not None
        assert result.difference.mean == pytest.approx(EFFECT[name], abs=2e-3)
        assert result.clear == (name != "two")
    overall = analysis.overall(analysis.judged["navi"])
    assert overall.difference is not None
    assert overall.difference.mean == pytest.approx(0.0, abs=2e-3)
    assert overall.difference.low < -0.05
    assert overall.difference.high > 0.05
    assert overall.tasks == 3
    assert analysis.overall(analysis.reference).difference is None


def test_lost_runs_are_counted_and_in_no_mean() -> None:
    def end(run: Run) -> float | None:
        if run.arm.name == "navi" and run.seed == 1002:
            return None
        return bowl(run, -8) * (0.9 if run.arm.name == "navi" else 1.0)

    analysis = analysed(study(), end)
    result = analysis.results(analysis.study.tasks["toy"])["navi"]
    assert (result.runs, result.lost, result.pairs) == (3, 1, 2)
    assert result.ends == [0.9, 0.9]
    assert result.difference is not None
    assert result.difference.mean == pytest.approx(-0.1)
    overall = analysis.overall(analysis.judged["navi"])
    assert (overall.lost, overall.runs) == (1, 3)
    lost_everywhere = analysed(study(), lambda run: None if run.seed > 1000 and run.arm.name == "navi" else 1.0)
    assert lost_everywhere.overall(lost_everywhere.judged["navi"]).difference is None


def test_wrong_rates_are_read_from_the_tuning_runs_on_the_half_that_judges() -> None:
    def end(run: Run) -> float:
        return bowl(run, -8 if run.arm.name == "adamw" else -11)

    analysis = analysed(study(), end)
    navi, adamw = (analysis.overall(analysis.judged[name]) for name in ("navi", "adamw"))
    assert analysis.plan.best["toy", "navi"] == -11
    assert adamw.wrong == {
        "÷ 10": (pytest.approx(0.16), 0),
        "÷ 3": (pytest.approx(0.04), 0),
        "× 3": (pytest.approx(0.04), 0),
        "× 10": (pytest.approx(0.16), 0),
    }
    assert navi.wrong["× 3"][0] == pytest.approx(0.05)  # half-way between the rates beside it: (0.01 + 0.09)/2
    assert adamw.untuned == (pytest.approx((0.04 + 0.0 + 0.04) / 3), 0)
    assert navi.untuned == (pytest.approx((0.01 + 0.09 + 0.25) / 3), 0)


def test_a_wrong_rate_at_which_the_run_is_lost_is_counted() -> None:
    analysis = analysed(study(), lambda run: None if quarter(run) > -8 else bowl(run, -8))
    cost, lost = analysis.overall(analysis.reference).wrong["× 3"]
    assert math.isnan(cost)
    assert lost == 1
    assert analysis.overall(analysis.reference).wrong["÷ 3"] == (pytest.approx(0.04), 0)


def test_rates_of_another_kind_are_not_compared_with_those_of_the_reference() -> None:
    arms = {**ARMS, "scale": {"optim": "emosens", "learning_rates": [0.1, 10]}}
    analysis = analysed(study(arms=arms), lambda run: bowl(run, 0 if run.arm.name == "scale" else -8))
    found = analysis.overall(analysis.judged["scale"])
    assert math.isnan(found.untuned[0])
    assert found.untuned[1] == 0
    assert found.wrong["× 3"][0] == pytest.approx(0.04)


def test_weights_and_average_of_the_same_runs_are_paired() -> None:
    arms = {"adamw": ARMS["adamw"], "flat": {**CONSTANT, "average": True}}

    def end(run: Run) -> Any:
        noise = 0.2 * (run.seed % 5)  # of the seed: far larger than what the average is worth
        return bowl(run, -8) + noise, (bowl(run, -8) + noise) * 0.95

    analysis = analysed(study(arms=arms, pairs=[["flat+average", "flat"]]), end)
    difference, tasks = analysis.difference(analysis.judged["flat+average"], analysis.judged["flat"])
    assert difference is not None
    assert difference.mean == pytest.approx(-0.05)
    assert tasks == 1


def test_a_best_rate_at_the_edge_is_pointed_out() -> None:
    analysis = analysed(study(), lambda run: bowl(run, 20) - 9)
    assert analysis.results(analysis.study.tasks["toy"])["adamw"].at_edge
    inside = analysed(study(), lambda run: bowl(run, -8))
    assert not inside.results(inside.study.tasks["toy"])["adamw"].at_edge


def test_what_an_arm_saves_that_ends_its_runs_itself() -> None:
    arms = {**ARMS, "ends": {**CONSTANT, "emotion": "settle", "self_stop": "stop"}}
    small = study(arms=arms)
    _, lines = played(small, lambda run: bowl(run, -8))
    for found in lines.values():
        if found["arm"] == "ends" and found["seed"] > 1000:
            end = 1.05 if found["seed"] == 1001 else 1.005
            curves = {half: [[0, 2.0], [10, end]] for half in ("tune", "judge")}
            lines[found["key"]] = {**found, "steps": 10, "curves": {"weights": curves}}
    analysis = Analysis(small, lines)
    stops = analysis.stops(small.tasks["toy"], small.judged["ends"])
    assert stops is not None
    assert (stops.runs, stops.stopped, stops.false_alarms) == (3, 3, 1)
    assert stops.saved == pytest.approx(0.75)
    assert analysis.stops(small.tasks["toy"], small.judged["navi"]) is None


def test_a_task_with_faults_is_set_against_its_twin_and_is_in_no_mean_over_tasks() -> None:
    tasks = {"toy": TASK, "hard": {**TASK, "noise": 0.5, "rates_of": "toy"}}
    worse = {"adamw": 1.5, "navi": 1.1}

    def end(run: Run) -> float:
        return bowl(run, -8) * (worse[run.arm.name] if run.task.name == "hard" else 1.0)

    analysis = analysed(study(tasks=tasks), end, extra={"faults": 4, "kind": "nan"})
    hard = analysis.study.tasks["hard"]
    for name, factor in worse.items():
        change, lost = analysis.harm(hard, analysis.judged[name])
        assert change is not None
        assert (change.mean, lost) == (pytest.approx(factor - 1), 0)
        assert analysis.extra(hard, analysis.judged[name]) == {"faults": 4.0}
    assert analysis.overall(analysis.judged["navi"]).difference is not None
    assert analysis.overall(analysis.judged["navi"]).difference.mean == 0.0  # type: ignore[union-attr]


def test_runs_that_should_have_been_paired_and_were_not_are_named() -> None:
    small = study()
    plan, lines = played(small, lambda run: bowl(run, -8))
    assert Analysis(small, lines).pairing_problems() == []
    run = next(run for run in plan.runs() if run.arm.name == "navi" and run.seed == 1002 and run.key in lines)
    lines[run.key] = line(run, 1.0, fingerprint={"weights": 7, "batches": [8]})
    problems = Analysis(small, lines).pairing_problems()
    assert any("different initial weights" in problem for problem in problems)
    assert any("different data" in problem for problem in problems)
    assert all("seed1002" in problem for problem in problems)


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    small = study(tasks=TASKS, pairs=[["navi", "adamw"]])
    _, lines = played(small, effects, decisions=[{"step": 3, "kind": "lowered", "factor": 0.3, "reason": "x"}])
    page, picture = write_report(small, lines, tmp_path)
    text = page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"]({picture.name})" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| navi")]
    assert re.fullmatch(r"[+−]0\.\d \(−1\d\.\d to \+1\d\.\d\)", rows[0][1]), rows[0]
    assert "| one" not in text
    assert "### one" in text
    assert "**−10.0 (" in text
    assert "lowered" in text
    assert "easing" not in text
    assert "Runs that an arm has ended" not in text
    assert "Not complete" not in text
    assert tables_are_whole(text)
    incomplete = dict(list(lines.items())[:5])
    assert "**Not complete:**" in write_report(small, incomplete, tmp_path)[0].read_text()


def tables_are_whole(text: str) -> bool:
    """Whether all rows of each table have as many cells."""
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return len(tables) > 3 and all(len({row.count("|") for row in rows}) == 1 for rows in tables)


HOSTILE = ["<!--<script>", "p_$\\frac{$", "a|b`*_[x](y)", "$x^2$", "_hidden", "名前"]


def test_names_are_data_in_page_and_figure(tmp_path: Path) -> None:
    arms = {name: CONSTANT | {"weight_decay": i / 10} for i, name in enumerate(HOSTILE)}
    tasks = {name: {**TASK, "noise": i / 10} for i, name in enumerate(HOSTILE[:2])}
    small = study(arms=arms, tasks=tasks, reference=HOSTILE[0], pairs=[HOSTILE[:2]])
    _, lines = played(
        small, lambda run: bowl(run, -8), decisions=[{"step": 1, "kind": "<b>", "factor": 1, "reason": ""}]
    )
    page, picture = write_report(small, lines, tmp_path)
    text = page.read_text()
    for name in [*HOSTILE, "<b>"]:
        assert name not in text or name.isalnum()
        assert data(name) in text
        entities = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), data(name))
        assert entities == name
        assert not set(data(name)) & set("<>|$*`_[\\")
    assert picture.stat().st_size > 10_000
    assert tables_are_whole(text)


def test_studies_are_published_with_all_of_their_runs_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content(tasks=TASKS)))
    small = parse_study(content(tasks=TASKS), "small")
    losses = [[step, 1.0] for step in range(1, 101)]
    _, lines = played(small, effects, losses=losses)
    results = Results(tmp_path)
    for found in lines.values():
        results.append(found)
    results.append({**line(Plan(study(), {}).open[0], 1.0), "key": "of another study"})
    arguments = [str(tmp_path), str(file), "--to", str(tmp_path / "docs")]
    assert publish_study.main(arguments) == 0
    published = gzip.decompress((tmp_path / "docs" / "runs.jsonl.gz").read_bytes())
    kept = [json.loads(text) for text in published.splitlines()]
    assert {found["key"] for found in kept} == lines.keys()
    assert all(len(found["losses"]) == 25 and found["losses"][-1] == [100, 1.0] for found in kept)
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {"runs.jsonl.gz", "small.md", "small.png"}
    again = Analysis(small, {found["key"]: found for found in kept})
    assert again.overall(again.judged["navi"]) == Analysis(small, lines).overall(again.judged["navi"])
    monkeypatch.setattr(publish_study, "MOST_BYTES", 1000)
    assert publish_study.main(arguments) == 1
    assert "is larger than" in capsys.readouterr().err


def test_matplotlib_reads_no_formula_in_a_name() -> None:
    from matplotlib.figure import Figure

    for name in HOSTILE:
        text = Figure().text(0, 0, words(name))
        shown, is_formula = text._preprocess_math(text.get_text())
        assert (shown, is_formula) == (name, False)
