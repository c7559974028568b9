"""`emo-hf compare` as it is used: the quick study in miniature, killed in the middle, gone on with, and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from emo_hf.study.main import main
from tests.study.processes import end, processes_marked
from tests.study.studies import FUNCTION, content

ROOT = Path(__file__).parents[2]
QUICK = ROOT / "configs" / "studies" / "quick.yaml"
MARK = "EMO_HF_TEST_MARK"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import emo_hf

    monkeypatch.chdir(ROOT)
    yield
    emo_hf.unregister()


def write(folder: Path, study: dict[str, Any]) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def lines_in(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def wait_until(true: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(true())


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_the_quick_study_in_miniature_goes_on_after_a_kill_without_repeating_a_run(tmp_path: Path) -> None:
    quick = yaml.safe_load(QUICK.read_text())
    quick["tasks"] = {name: {"function": FUNCTION, "steps": 8} for name in quick["tasks"]}
    quick["learning_rates"] = quick["learning_rates"][1:3]
    study, folder, mark = write(tmp_path, quick), tmp_path / "out", uuid.uuid4().hex
    command = [sys.executable, "-m", "emo_hf", "compare", str(study), "--output_dir", str(folder), "--processes", "2"]
    process = subprocess.Popen(command, env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert wait_until(lambda: len(lines_in(folder)) >= 3 or process.poll() is not None, 240), "no run was done"
        assert process.poll() is None, process.communicate()[1].decode()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert wait_until(lambda: not processes_marked(mark), 30), "processes of its runs went on"
    finally:
        process.kill()
        end(mark)
    before = lines_in(folder)
    assert 3 <= len(before) < 20

    assert main([str(study), "--output_dir", str(folder), "--processes", "2"]) == 0
    after = lines_in(folder)
    assert after[: len(before)] == before
    assert set(Counter(line["id"] for line in after).values()) == {1}
    assert len(after) == 4 * 2 + 4 * 3
    assert not any("error" in line for line in after)
    assert "Not complete" not in (folder / "report.md").read_text()
    assert "Not paired" not in (folder / "report.md").read_text()
    assert not (folder / "running").exists()
    assert main([str(study), "--output_dir", str(folder), "--report"]) == 0
    assert len(lines_in(folder)) == len(after)


def test_a_dry_run_says_how_many_runs_there_are_and_how_long_they_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, folder = write(tmp_path, content()), tmp_path / "out"
    assert main([str(study), "--output_dir", str(folder), "--dry-run", "--only", "adamw"]) == 0
    said = capsys.readouterr().out
    assert "10 runs in all: 4 tune, 6 report" in said
    assert "5 of them are left to do under --only" in said
    assert "toy: about " in said
    assert "time for all of them: about " in said
    assert lines_in(folder) == []


def test_a_run_that_fails_is_said_kept_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = content(tasks={"toy": {"function": "tests.study.tiny_task:no_loss", "steps": 2}})
    study, folder = write(tmp_path, broken), tmp_path / "out"
    only = ["--only", "navi/0.01/seed1"]
    assert main([str(study), "--output_dir", str(folder), "--processes", "1", *only]) == 1
    (line,) = lines_in(folder)
    assert line["error"].startswith("ValueError: evaluate must return a mapping with 'loss'")
    assert "Traceback" in (folder / line["log"]).read_text()
    assert "1 run failed" in capsys.readouterr().out
    assert main([str(study), "--output_dir", str(folder), "--processes", "1", *only]) == 1
    assert len(lines_in(folder)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml", "--output_dir", "x"], "nowhere.yaml: there is no such file"),
        ([str(QUICK), "--output_dir", str(QUICK)], "output_dir must be a folder, got the file"),
        ([str(QUICK)], "--output_dir"),
        ([str(QUICK), "--output_dir", "x", "--processes", "0"], "at least 1 is wanted, got '0'"),
        ([str(QUICK), "--output_dir", "x", "--report"], "there are no runs in 'x' to report on"),
    ],
)
def test_what_cannot_be_used_is_said_and_exits_with_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--dry-run" in capsys.readouterr().out
