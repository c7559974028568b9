"""The benchmarks: they compare pairs, and what they measure can be written into pages that have a place for it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"<!-- measured: (.+?) -->\n.*?<!-- /measured -->", flags=re.DOTALL)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import measuring

    return measuring


@pytest.fixture
def step(measuring: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import benchmark_step

    monkeypatch.setattr(benchmark_step, "SETS", {"small": [(8, 8), (8,)], "lora": [(64, 80), (16,)]})
    monkeypatch.setattr(benchmark_step, "PEERS", {"torch.optim": {"AdamW": {"foreach": True}}, "no_such_package": {}})
    monkeypatch.setattr(sys, "argv", ["scripts/benchmark_step.py"])
    return benchmark_step


def test_a_slow_moment_slows_both_of_a_pair_and_leaves_their_ratio(
    measuring: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    took = {"reference": 2.0, "own": 3.0}
    order = []

    def run(name: str) -> None:
        order.append(name)
        clock[0] += took[name] * (100.0 if len(order) in (3, 4) else 1.0)

    pairs = measuring.in_pairs(lambda: run("reference"), lambda: run("own"), 3, torch.device("cpu"))
    assert pairs == [(2.0, 3.0), (200.0, 300.0), (2.0, 3.0)]
    assert order == ["reference", "own", "own", "reference", "reference", "own"]
    assert measuring.ratios(pairs) == (1.5, 1.5, 1.5)


def test_tables_take_the_place_of_those_that_stand_between_their_marks(measuring: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    one, other = (f"<!-- measured: {name} -->\n| old |\n<!-- /measured -->\n" for name in ("one", "other"))
    page.write_text(f"# Page\n{one}\nbetween\n{other}", encoding="utf-8")
    measuring.write_tables(page, {"other": r"| new \1 |"})
    before = page.read_text(encoding="utf-8")
    assert before == f"# Page\n{one}\nbetween\n" + other.replace("| old |", r"| new \1 |")
    with pytest.raises(SystemExit, match="there is no <!-- measured: third -->"):
        measuring.write_tables(page, {"one": "| new |", "third": "| new |"})
    assert page.read_text(encoding="utf-8") == before


def test_one_command_measures_every_table_of_a_step_and_writes_it(
    step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, output = tmp_path / "page.md", tmp_path / "out.json"
    names = ["family", "attach", "average", "low_precision", "peers"]
    page.write_text("".join(f"<!-- measured: step {name} -->\n<!-- /measured -->\n" for name in names))
    step.main(["--sets", "small", "lora", "--rounds", "2", "--steps", "3", "--only", "emo", "law", "adamw",
               "--output", str(output), "--write", str(page)])  # fmt: skip
    left_out = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert sum("No module named 'no_such_package'" in line for line in left_out) == 1
    assert all("average_weights" in line or "no_such_package" in line for line in left_out), left_out
    tables = dict(re.findall(r"<!-- measured: step (\w+) -->\n(.*?)<!-- /measured -->", page.read_text(), re.DOTALL))
    head, _, *rows = tables["family"].splitlines()
    assert head.startswith("|  | its own choice, small | its own choice, lora | without a C compiler, small |")
    assert {row.split(" | ")[0] for row in rows if row.startswith("| Emo")} == {
        f"| {cls.__name__} {version}" for cls in step.FAMILY.values() for version in cls.versions
    }
    assert "| law settle with its guard | " in tables["attach"]
    assert "bare, small | bare, lora | clipped, small" in tables["attach"]
    assert re.search(r"^    python scripts/benchmark_step\.py$", tables["attach"], flags=re.MULTILINE)
    assert f"torch {torch.__version__}" in tables["low_precision"]
    navi = next(row for row in tables["low_precision"].splitlines() if row.startswith("| EmoNavi"))
    assert navi.split(" | ")[-1].startswith("8, 4, 10")  # in float32, bfloat16, compensated; fewer in 8 bits
    results: list[dict[str, Any]] = json.loads(output.read_text())["results"]
    assert all(low <= middle <= high for each in results for low, middle, high in [each["ratio"]])


def test_every_place_for_measured_tables_in_a_page_is_one_that_a_benchmark_writes() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("benchmark_*.py")}
    written = {name for text in scripts.values() for name in re.findall(r'finish\(options, \{"([\w ]+)":', text)}
    written |= {f"step {name}" for name in ("family", "attach", "average", "low_precision", "peers")}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert set(MARK.findall(page.read_text(encoding="utf-8"))) <= written, page


def test_the_pages_name_every_benchmark_and_no_other() -> None:
    pages = [ROOT / "scripts" / "README.md", *(ROOT / "docs").glob("*.md")]
    said = {name for page in pages for name in re.findall(r"\bbenchmark_\w+\.py", page.read_text(encoding="utf-8"))}
    assert said == {path.name for path in (ROOT / "scripts").glob("benchmark_*.py")}
