"""`--follow`: draws again whenever a run has written more, and ends when it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from emo_hf.plot.errors import PlotError
from emo_hf.plot.follow import follow
from emo_hf.plot.main import main
from emo_hf.plot.run import Run
from tests.plot.histories import history

MAX_STEPS = 40


def write(folder: Path, steps: int) -> None:
    checkpoint = folder / f"checkpoint-{steps}"
    checkpoint.mkdir(parents=True)
    lines = [line for line in history(steps) if "train_runtime" not in line]
    state = {"global_step": steps, "max_steps": MAX_STEPS, "log_history": lines}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


def test_it_draws_after_each_change_and_not_without_one_until_the_run_ends(tmp_path: Path) -> None:
    drawn: list[tuple[int, bool]] = []
    said: list[str] = []

    def draw(runs: Sequence[Run], going: bool) -> None:
        if not runs[0].history:
            raise PlotError("nothing to draw")
        drawn.append((runs[0].last_step, going))

    def work() -> None:
        for steps in (10, 20, 40):
            time.sleep(0.15)
            write(tmp_path, steps)

    worker = threading.Thread(target=work)
    worker.start()
    follow([tmp_path], draw, every=0.01, say=said.append)
    worker.join()
    assert drawn == [(10, True), (20, True), (40, False)]
    assert len(said) == 1, "what is waited for is said once"
    assert "holds neither" in said[0]


def test_a_run_that_has_ended_is_drawn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, MAX_STEPS)
    assert main([str(tmp_path), "--follow", "--output", str(tmp_path / "a.html")]) == 0
    assert '"reload":0' in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a.html")


def test_a_folder_that_is_not_there_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "typo"), "--follow"]) == 2
    assert "there is no file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan"])
def test_an_interval_that_cannot_be_waited_for_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--follow", f"--every={given}"]) == 2
    assert "a number of seconds above 0" in capsys.readouterr().err


def test_the_command_follows_a_going_run_until_ctrl_c(tmp_path: Path) -> None:
    write(tmp_path, 10)
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "emo_hf", "plot", str(tmp_path), "--follow", "--every", "0.05",
               "--output", str(tmp_path / "a.html")]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where these tests run in the background
    )
    try:
        wait_until(lambda: (tmp_path / "a.html").exists())
        first = (tmp_path / "a.html").read_text(encoding="utf-8")
        assert '"reload":0' not in first
        write(tmp_path, 20)
        wait_until(lambda: (tmp_path / "a.html").read_text(encoding="utf-8") != first)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors


def wait_until(happened: Any) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it has not happened in a minute"
        time.sleep(0.05)
