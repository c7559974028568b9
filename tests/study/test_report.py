"""What a report says of runs whose losses are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from emo_hf.study.analysis import Analysis
from emo_hf.study.differences import BETTER, NO_DIFFERENCE, UNKNOWN, WORSE
from emo_hf.study.html import page
from emo_hf.study.plan import report_runs, tune_runs
from emo_hf.study.report import write_report
from emo_hf.study.specification import Study
from tests.study.studies import ARMS, line, study

BEST = {("toy", "adamw"): 1e-3, ("toy", "navi"): 1e-3}


def lines_of(small: Study, ends: Mapping[str, list[float | None]], **changes: Any) -> dict[str, Mapping[str, Any]]:
    """Runs in which 1e-3 is the best rate of each arm, and the fresh seeds end with these losses."""
    found = {run.id: line(run, 1.0 if run.rate == 1e-3 else 1.2) for run in tune_runs(small)}
    for run in report_runs(small, {("toy", arm): 1e-3 for arm in small.arms}, following=False):
        index = small.seeds.to_report.index(run.seed)
        found[run.id] = line(run, ends[run.arm.name][index], **changes)
    return found


CASES = [
    pytest.param([0.90, 0.91, 0.89], BETTER, id="10 % lower in every seed"),
    pytest.param([1.10, 1.11, 1.09], WORSE, id="10 % higher in every seed"),
    pytest.param([0.90, 1.11, 0.99], NO_DIFFERENCE, id="the interval covers 0"),
    pytest.param([0.80, 0.99, 0.99], NO_DIFFERENCE, id="the interval leaves out 0 but the test does not bear it"),
    pytest.param([1.00, 1.00, 1.00], NO_DIFFERENCE, id="the very same"),
    pytest.param([0.50, 0.50, None], WORSE, id="better, but diverged once"),
]


@pytest.mark.parametrize(("ends", "verdict"), CASES)
def test_a_difference_is_claimed_only_where_it_is_shown(
    ends: list[float | None], verdict: str, tmp_path: Path
) -> None:
    small = study()
    lines = lines_of(small, {"adamw": [1.0, 1.0, 1.0], "navi": ends})
    assert Analysis(small, lines).differences("toy")["navi"].verdict == verdict
    write_report(small, lines, tmp_path)
    row = next(row for row in (tmp_path / "report.md").read_text().splitlines() if row.startswith("| navi | 1e-3 |"))
    assert row.split("|")[-2].strip().startswith(verdict)


def test_pairs_are_compared_with_each_other_and_pay_for_their_own_number_only(tmp_path: Path) -> None:
    small = study(pairs=[["navi", "adamw"], ["adamw", "navi"]])
    lines = lines_of(small, {"adamw": [1.0, 1.0, 1.0], "navi": [0.90, 0.91, 0.89]})
    found = Analysis(small, lines).pair_differences("toy")
    assert [found[pair].verdict for pair in small.pairs] == [BETTER, WORSE]
    alone = Analysis(small, lines).differences("toy")["navi"]
    assert found["navi", "adamw"].p == alone.p
    assert found["navi", "adamw"].adjusted == pytest.approx(2 * (alone.p or 0.0))
    write_report(small, lines, tmp_path)
    rows = [row for row in (tmp_path / "report.md").read_text().splitlines() if row.startswith("| navi − adamw |")]
    assert rows == ["| navi − adamw | **−10.00 % [−11.00, −9.00]** | −10.00 % [−11.00, −9.00] |"]


def test_what_was_not_run_is_not_said_to_have_diverged(tmp_path: Path) -> None:
    small = study(arms={**ARMS, "other": ARMS["navi"]})
    lines = {run.id: line(run, None) for run in tune_runs(small) if run.arm.name == "navi"}
    two = {**lines_of(small, {arm: [1.0] * 3 for arm in small.arms}), **lines}
    some = {key: value for key, value in two.items() if key != next(iter(lines))}
    for given, said in ((two, "diverged at every rate"), (some, "not run")):
        write_report(small, given, tmp_path)
        row = next(row for row in (tmp_path / "report.md").read_text().splitlines() if row.startswith("| navi | – |"))
        assert row.split("|")[-2].strip() == said


def test_with_one_seed_nothing_is_claimed() -> None:
    small = study(seeds={"tune": 1, "report": 1})
    found = Analysis(small, lines_of(small, {"adamw": [1.0], "navi": [0.5]})).differences("toy")["navi"]
    assert found.verdict == UNKNOWN


def test_differences_are_paired_by_seed_and_shares_of_the_reference() -> None:
    small = study()
    found = Analysis(small, lines_of(small, {"adamw": [1.0, 2.0, 3.0], "navi": [1.1, 2.1, 3.1]})).differences("toy")[
        "navi"
    ]
    assert found.interval is not None
    assert found.interval.mean == pytest.approx(0.05)
    assert found.interval.low == pytest.approx(0.05)  # every seed differs by 0.1, though the seeds lie far apart
    assert found.verdict == WORSE


def test_holm_makes_many_arms_pay() -> None:
    ends = [0.97, 0.95, 0.96]  # p = 0.02 by itself
    one = study()
    assert (
        Analysis(one, lines_of(one, {"adamw": [1.0] * 3, "navi": ends})).differences("toy")["navi"].verdict == BETTER
    )
    arms = {**ARMS, **{f"other{i}": ARMS["navi"] for i in range(3)}}
    many = study(arms=arms)
    spread: dict[str, list[float | None]] = {f"other{i}": [0.9, 1.1, 1.0] for i in range(3)}
    found = Analysis(many, lines_of(many, {"adamw": [1.0] * 3, "navi": list(ends), **spread})).differences("toy")[
        "navi"
    ]
    assert found.interval is not None
    assert not found.interval.covers_zero
    assert found.verdict == NO_DIFFERENCE


def test_runs_of_a_study_that_was_planned_otherwise_are_left_out() -> None:
    small, changed = study(), study(evaluations=2)
    analysis = Analysis(changed, lines_of(small, {"adamw": [1.0] * 3, "navi": [1.0] * 3}))
    assert analysis.lines == []
    assert len(analysis.missing) == 4


def test_a_pair_that_was_none_is_said() -> None:
    small = study()
    lines = lines_of(small, {"adamw": [1.0] * 3, "navi": [1.0] * 3})
    last = lines["toy/navi/0.001/seed1001"]
    lines[last["id"]] = {**last, "fingerprint": {"weights": 5, "first_batch": 6, "batches": [6]}}
    assert Analysis(small, lines).pairing == [
        "toy/navi/0.001/seed1001 and toy/adamw/0.001/seed1001 had different initial weights",
        "toy/navi/0.001/seed1001 and toy/adamw/0.001/seed1001 had different data, or another order",
    ]


def emotion(steps: int = 40) -> dict[str, Any]:
    spread = {"mean": 1.2, "sd": 0.1, "min": 1.0, "p05": 1.0, "median": 1.2, "p95": 1.5, "max": 1.6}
    return {
        "law": "v3.1", "sigma": spread, "coefficient": spread, "sigma_curve": [], "factors": [1.2] * steps,
        "decay_factors": [], "floor": 0.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    small = study(arms={**ARMS, "lost": ARMS["navi"]})
    stops = {"raw": 20, "believed": None, "ended": None}
    ends: dict[str, list[float | None]] = {"adamw": [1.0] * 3, "navi": [0.9, 1.1, 1.0], "lost": [None] * 3}
    lines = lines_of(small, ends, emotion=emotion(), stops=stops)
    gone = lines.pop("toy/lost/0.001/seed1003")
    lines[gone["id"]] = {"id": gone["id"], "config": gone["config"], "error": "MemoryError: no more <memory>"}
    write_report(small, lines, folder)
    return folder


def test_the_report_lists_every_run_and_every_failure(written: Path) -> None:
    text = (written / "report.md").read_text()
    rows = re.findall(r"^\| (toy/\S+) \| (?:tune|report) \|", text, re.MULTILINE)
    assert len(rows) == len(set(rows)) == 6 + 8
    assert "| toy/lost/0.001/seed1003 | MemoryError: no more <memory> |" in text
    assert "**Not complete:** 1 planned run missing, 1 of them failed" in text


def test_the_report_has_all_its_sections(written: Path) -> None:
    headings = re.findall(r"^## (.+)$", (written / "report.md").read_text(), re.MULTILINE)
    assert headings == [
        "What was found", "Loss against learning rate", "Loss against steps", "Performance profile", "Stopping",
        "What the emotion did", "Cost", "How it was done", "All runs",
    ]  # fmt: skip


def test_every_picture_that_is_named_is_there(written: Path) -> None:
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (written / "report.md").read_text())
    assert len(named) == 6
    assert all((written / name).read_bytes().startswith(b"\x89PNG") for name in named)


def test_the_page_needs_nothing_beside_it(written: Path) -> None:
    text = (written / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len([source for source in sources if source.startswith("data:image/png;base64,")]) == 6
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert all(f'id="{source[1:]}"' in text for source in sources if source.startswith("#"))
    assert "<script" not in text
    assert "url(" not in text
    assert "no more &lt;memory&gt;" in text
    assert '<td class="none">no difference shown</td>' in text


def test_a_reference_that_diverged_everywhere_has_a_report_too(tmp_path: Path) -> None:
    small = study()
    lines = lines_of(small, {"adamw": [None] * 3, "navi": [1.0] * 3})
    lost = {"train": [], "evaluations": [[0, 2.0], [20, None], [40, None]]}
    lines = {key: {**line, "curve": lost} if line["diverged"] else line for key, line in lines.items()}
    write_report(small, lines, tmp_path)
    assert "better: diverged in 0 of 3 (reference 3)" in (tmp_path / "report.md").read_text()


def test_a_study_of_which_little_is_known_has_a_report_too(tmp_path: Path) -> None:
    small = study()
    first = tune_runs(small)[0]
    write_report(small, {first.id: line(first, None)}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Nothing yet: no two arms have been run" in text
    assert "7 planned runs missing" not in text  # those that report cannot be planned yet
    assert page([], "empty", tmp_path).startswith("<!doctype html>")
