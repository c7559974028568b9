"""The script that runs what waits for a GPU: its own machinery, tried without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ("--device", "cpu", "--quick")


def python(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{SCRIPTS.parent}{os.pathsep}{SCRIPTS}", "OMP_NUM_THREADS": "1"}
    environment |= {"MKL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=240, check=False, env=environment
    )


def test_every_part_that_needs_no_process_of_its_own_runs_and_is_written_down(tmp_path: Path) -> None:
    parts = ["kernels", "tests", "stall", "scaler", "step", "bandwidth", "memory"]
    done = python(str(SCRIPTS / "gpu_check.py"), *QUICK, "--only", *parts, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(report["parts"]) == parts
    assert all(part["found"] and not part["wrong"] for part in report["parts"].values())
    assert "nothing here says anything about a GPU" in done.stdout.splitlines()[0]
    assert "7 of 7 parts as they should be" in done.stdout


def test_a_part_that_fails_ends_no_other_and_is_told(tmp_path: Path) -> None:
    broken = (
        "import sys, gpu_parts\n"
        "def broken(options, found, wrong): found['seen'] = 1; raise KeyError('on purpose')\n"
        "gpu_parts.PARTS['scaler'] = broken\n"
        "import gpu_check\n"
        "sys.exit(gpu_check.main(sys.argv[1:]))\n"
    )
    done = python("-c", broken, *QUICK, "--only", "scaler", "kernels", "--output", str(tmp_path / "out"))
    assert done.returncode == 1, done.stdout + done.stderr
    parts = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["parts"]
    assert "on purpose" in parts["scaler"]["wrong"][0]
    assert parts["scaler"]["found"] == {"seen": 1}
    assert parts["kernels"]["found"]
    assert "1 of 2 parts as they should be" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_it_needs_one_and_measures_nothing() -> None:
    for arguments, said in (((), "needs a GPU"), (("--device", "cpu"), "needs --quick")):
        done = python(str(SCRIPTS / "gpu_check.py"), *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stdout == ""
