"""The command: several processes in one folder, a kill at any time, a pause, runs that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from emo_hf.study.execute import Workers, duration
from emo_hf.study.main import main
from emo_hf.study.plan import Plan
from emo_hf.study.results import Results, claim
from emo_hf.study.schema import read_study
from tests.study.processes import end, processes_marked
from tests.study.studies import ARMS, FUNCTION, content

ROOT = Path(__file__).parents[2]
MARK = "EMO_HF_STUDY_TEST"
SHORT: dict[str, Any] = {
    "arms": {"adamw": ARMS["adamw"], "flat": {"optim": "adamw_torch", "average": True}},
    "tasks": {"toy": {"function": FUNCTION, "steps": 6, "learning_rates": [3e-2, 1e-1]}},
    "seeds": {"tune": 1, "report": 1},
    "evaluations": 1,
}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    import emo_hf

    yield
    emo_hf.unregister()


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content(**{**SHORT, **changes})))
    return file


def begin(mark: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "emo_hf.study.main", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


def ids(folder: Path) -> list[str]:
    """The key of every line, in order."""
    file = folder / "runs.jsonl"
    return [json.loads(text)["key"] for text in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path)
    end(f"{MARK}={tmp_path}")


def test_a_study_runs_to_its_end_and_reports_and_does_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    arguments = [str(file), "--output_dir", str(out), "--processes", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "toy/adamw/0.1/seed1: adamw 0." in said or "toy/adamw/0.1/seed1: adamw 1." in said
    assert "flat+average" in said
    assert said.endswith(f"{out / 'small.md'}\n{out / 'small.png'}\n")
    done = ids(out)
    assert len(done) == len(set(done)) == said.count("runs left")
    plan = Plan(read_study(file), Results(out).lines)
    assert not plan.open
    assert all(plan.reported(plan.study.tasks["toy"], judged) for judged in plan.study.judged.values())
    assert main(arguments) == 0
    assert ids(out) == done


def test_after_a_kill_no_process_is_left_and_the_same_command_goes_on(tmp_path: Path, mark: str) -> None:
    tasks = {"toy": {"function": FUNCTION, "steps": 60, "learning_rates": [3e-2, 1e-1]}}
    file, out = write(tmp_path, tasks=tasks), tmp_path / "out"
    killed = begin(mark, str(file), "--output_dir", str(out), "--processes", "2")
    wait_for(lambda: len(ids(out)) >= 2)
    killed.kill()
    killed.communicate()
    wait_for(lambda: not processes_marked(f"{MARK}={tmp_path}"))
    before = ids(out)
    assert len([*(out / "claims").iterdir()]) >= 2
    assert not (out / "small.md").exists()
    assert main([str(file), "--output_dir", str(out), "--processes", "1"]) == 0
    assert ids(out)[: len(before)] == before
    assert len(ids(out)) == len(set(ids(out)))
    assert not Plan(read_study(file), Results(out).lines).open


def test_runs_that_another_process_has_claimed_are_left_to_it(tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    first = Plan(read_study(file), {}).open[0]
    held = claim(out, first.key)

    def give_up() -> None:
        wait_for(lambda: len(ids(out)) >= 2)
        assert first.key not in ids(out)
        held.close()

    other = threading.Thread(target=give_up)
    other.start()
    assert main([str(file), "--output_dir", str(out), "--processes", "1"]) == 0
    other.join()
    assert first.key in ids(out)
    assert len(ids(out)) == len(set(ids(out)))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_and_sigterm_end_it_and_lose_only_the_run_that_was_going_on(
    sent: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"toy": {"function": FUNCTION, "steps": 100_000, "learning_rates": [3e-2, 1e-1]}}
    out = tmp_path / "out"

    def interrupt() -> None:
        wait_for(lambda: (out / "claims").exists())
        time.sleep(1.0)
        os.kill(os.getpid(), sent)

    threading.Thread(target=interrupt).start()
    assert main([str(write(tmp_path, tasks=tasks)), "--output_dir", str(out), "--processes", "1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not ids(out)
    free = claim(out, next((out / "claims").iterdir()).name)
    assert free is not None  # the run is nobody's any more
    free.close()


def test_while_a_file_named_pause_is_there_no_run_begins(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "pause").touch()
    seen = []

    def go_on() -> None:
        time.sleep(10.0)
        seen.append(ids(out))
        (out / "pause").unlink()

    threading.Thread(target=go_on).start()
    assert main([str(write(tmp_path)), "--output_dir", str(out), "--processes", "1", "--only", "adamw/0.1/"]) == 0
    assert seen == [[]]
    assert ids(out)


def test_a_run_that_fails_is_named_and_the_others_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {**SHORT["tasks"], "bad": {"function": "tests.study.tiny_task:no_loss", "steps": 2}}
    out = tmp_path / "out"
    assert main([str(write(tmp_path, tasks=tasks)), "--output_dir", str(out), "--processes", "1"]) == 1
    said = capsys.readouterr().out
    assert "failed: bad/adamw: UserError: tasks.bad.function: evaluate must return a mapping with 'loss'" in said
    kept = [*(out / "failed").glob("*.txt")]
    assert kept
    assert "Traceback" in kept[0].read_text()
    lines = Results(out).lines.values()
    assert {line["task"] for line in lines if "error" not in line} == {"toy"}
    page = (out / "small.md").read_text()
    assert "Not complete" in page
    assert "failed: bad" in page


def test_studies_that_share_a_folder_share_their_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(write(tmp_path)), "--output_dir", str(out), "--processes", "1"]) == 0
    done = len(ids(out))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(content(**{**SHORT, "arms": {"renamed": ARMS["adamw"]}, "reference": "renamed"})))
    assert main([str(other), "--output_dir", str(out), "--processes", "1"]) == 0
    assert len(ids(out)) == done
    assert (out / "other.md").is_file()
    assert (out / "small.md").is_file()


def test_only_runs_that_are_named_are_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(write(tmp_path)), "--output_dir", str(out), "--processes", "1", "--only", "adamw/0.1/"]
    assert main(arguments) == 0
    assert [(line["arm"], line["rate"]) for line in Results(out).lines.values()] == [("adamw", 0.1)]


def test_a_dry_run_says_how_long_it_takes_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(write(tmp_path)), "--output_dir", str(out), "--dry-run", "--processes", "2"]) == 0
    said = capsys.readouterr().out
    assert "toy: 4 runs now, about" in said
    assert "2 at a time, 1 threads each" in said
    assert not ids(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.yaml", "--output_dir", "out"], "none.yaml: there is no such file"),
        (["small.yaml", "--output_dir", "small.yaml"], "output_dir must be a folder"),
        (["small.yaml", "--output_dir", "out", "--report"], "there are no runs of this study in"),
        (["small.yaml", "--output_dir", "out", "--processes", "0"], "a whole number of at least 1 is wanted, got '0'"),
        (["small.yaml"], "--output_dir"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_two_workers_of_one_thread_on_two_cores() -> None:
    assert Workers.choose(2, None) == Workers(processes=2, threads=1)
    assert Workers.choose(1, 3) == Workers(processes=1, threads=3)
    assert [duration(seconds) for seconds in (5, 300, 7200)] == ["5 s", "5 min", "2.0 h"]
