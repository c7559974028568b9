"""The command: several processes in one folder, a kill at any time, a pause, runs that fail."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from emo_hf.study import execute
from emo_hf.study.execute import Workers, duration
from emo_hf.study.main import main
from emo_hf.study.plan import Plan
from emo_hf.study.results import Results, claim
from emo_hf.study.schema import read_study
from tests.study.studies import ARMS, FUNCTION, content

ROOT = Path(__file__).parents[2]
TOY = {"function": FUNCTION, "steps": 6, "learning_rates": [3e-2, 1e-1]}
SHORT: dict[str, Any] = {
    "arms": {"adamw": ARMS["adamw"], "flat": {"optim": "adamw_torch", "average": True}},
    "tasks": {"toy": TOY},
    "seeds": {"tune": 1, "report": 1},
    "evaluations": 1,
}


def write(folder: Path, name: str = "small", **changes: Any) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content(**{**SHORT, **changes})))
    return file


def compare(file: Path, out: Path, *arguments: str) -> int:
    return main([str(file), "--output_dir", str(out), "--processes", "1", *arguments])


def keys(folder: Path) -> list[str]:
    """The key of every line, in order."""
    file = folder / "runs.jsonl"
    return [json.loads(text)["key"] for text in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


def test_a_study_runs_to_its_end_but_for_pauses_and_what_others_do_and_nothing_is_done_twice(tmp_path: Path) -> None:
    file, out, seen, printed = write(tmp_path), tmp_path / "out", [], io.StringIO()
    out.mkdir()
    (out / "pause").touch()
    first = Plan(read_study(file), {}).open[0].key
    held = claim(out, first)

    def look(seconds: float) -> None:
        seen.append(keys(out))
        if len(seen) == 1:
            (out / "pause").unlink()
        else:
            held.close()

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(execute.time, "sleep", look)
        assert compare(file, out) == 0
    said, runs = printed.getvalue(), keys(out)
    assert seen[0] == [], "while a file named pause is there no run begins"
    assert len(seen) == 2
    assert len(seen[1]) >= 2
    assert first not in seen[1], "what another process has claimed is left to it"
    assert len(runs) == len(set(runs)) == said.count("runs left")
    assert "toy/adamw/0.1/seed1: adamw 0." in said or "toy/adamw/0.1/seed1: adamw 1." in said
    assert "flat+average" in said
    assert said.endswith(f"{out / 'small.md'}\n{out / 'small.png'}\n")
    assert not Plan(read_study(file), Results(out).lines).open
    other = write(tmp_path, "other", arms={"renamed": ARMS["adamw"]}, reference="renamed")
    assert compare(file, out) == compare(other, out) == 0
    assert (out / "other.md").is_file()
    assert keys(out) == runs, "a study that shares the folder shares its runs"


def test_after_a_kill_no_process_is_left_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file, out = write(tmp_path, tasks={"toy": TOY, "unending": {**TOY, "steps": 10**6}}), tmp_path / "out"
    command = [sys.executable, "-m", "emo_hf.study.main", str(file), "--output_dir", str(out), "--processes", "2"]
    pipe = subprocess.PIPE
    killed = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=pipe, stderr=pipe, start_new_session=True
    )
    try:
        wait_for(lambda: len(keys(out)) >= 2)
        killed.kill()
        killed.communicate(timeout=45)  # until the last process that could write has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
    before = keys(out)
    assert not (out / "small.md").exists()
    assert compare(file, out, "--only", "toy/") == 0
    assert keys(out)[: len(before)] == before
    assert len(keys(out)) == len(set(keys(out)))
    assert {run.task.name for run in Plan(read_study(file), Results(out).lines).open} == {"unending"}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_and_sigterm_end_it_and_lose_only_the_run_that_was_going_on(
    sent: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    out = tmp_path / "out"

    def interrupt() -> None:
        wait_for(lambda: (out / "claims").exists())
        time.sleep(1.0)
        os.kill(os.getpid(), sent)

    threading.Thread(target=interrupt).start()
    assert compare(write(tmp_path, tasks={"toy": {**TOY, "steps": 100_000}}), out) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not keys(out)
    assert claim(out, next((out / "claims").iterdir()).name) is not None, "the run is nobody's any more"


def test_a_run_that_fails_is_tried_twice_and_named_and_the_others_that_are_wanted_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"function": "tests.study.tiny_task:no_loss", "steps": 2, "learning_rates": [3e-2, 1e-1]}
    file, out = write(tmp_path, tasks={"bad": bad, "toy": TOY}), tmp_path / "out"
    assert compare(file, out, "--only", "bad/adamw/0.1/", "--only", "toy/adamw/0.1/") == 1
    said = capsys.readouterr().out
    assert "failed: bad/adamw: UserError: tasks.bad.function: evaluate must return a mapping with 'loss'" in said
    (kept,) = (out / "failed").glob("*.txt")
    assert "Traceback" in kept.read_text()
    assert keys(out).count(kept.stem) == 2
    done = [line for line in Results(out).lines.values() if "error" not in line]
    assert [(line["task"], line["arm"], line["rate"]) for line in done] == [("toy", "adamw", 0.1)]
    page = (out / "small.md").read_text()
    assert "Not complete" in page
    assert "failed: bad" in page


def test_a_dry_run_says_how_long_it_takes_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(write(tmp_path)), "--output_dir", str(out), "--dry-run", "--processes", "2"]) == 0
    said = capsys.readouterr().out
    assert "toy: 4 runs now, about" in said
    assert "2 at a time, 1 threads each" in said
    assert not keys(out)
    assert Workers.choose(1, 3) == Workers(processes=1, threads=3)
    assert [duration(seconds) for seconds in (5, 300, 7200)] == ["5 s", "5 min", "2.0 h"]


def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["none.yaml", "--output_dir", "out"], "none.yaml: there is no such file"),
        (["small.yaml", "--output_dir", "small.yaml"], "output_dir must be a folder"),
        (["small.yaml", "--output_dir", "out", "--report"], "there are no runs of this study in"),
        (["small.yaml", "--output_dir", "out", "--processes", "0"], "a whole number of at least 1 is wanted, got '0'"),
        (["small.yaml"], "--output_dir"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
