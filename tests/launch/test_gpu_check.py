"""The script that runs what waits for a GPU: its own machinery, tried without one, tells failure from success."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
PARTS = ["tests", "stall", "scaler", "ranks", "step"]


def check(*arguments: str | Path, broken: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script, or break something in it first."""
    environment = os.environ | {"PYTHONPATH": f"{SCRIPTS.parent}{os.pathsep}{SCRIPTS}", "OMP_NUM_THREADS": "1"}
    code = f"import sys, gpu_check\n{broken}\nsys.exit(gpu_check.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False,
        env=environment,
    )  # fmt: skip


@pytest.mark.long
def test_every_part_runs_on_a_cpu_and_is_written_down(tmp_path: Path) -> None:
    done = check("--device", "cpu", "--only", *PARTS, "--output", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    assert list(parts) == PARTS
    assert all(part["found"] and not part["wrong"] for part in parts.values())
    assert parts["ranks"]["found"] == {"ddp, 2 ranks": "as it should be"}
    assert "5 of 5 parts as they should be" in done.stdout


@pytest.mark.long
def test_what_is_wrong_is_told_and_ends_no_other_part(tmp_path: Path) -> None:
    broken = (
        "def broken(options, found, wrong): found['seen'] = 1; raise KeyError('on purpose')\n"
        "gpu_check.PARTS['scaler'] = broken\n"
    )
    local = ("--sync", "local")  # every rank follows its own loss
    output = tmp_path / "out.json"
    parts = ("scaler", "ranks", "tests")
    done = check("--device", "cpu", "--only", *parts, *local, "--output", output, broken=broken)
    assert done.returncode == 1, done.stdout + done.stderr
    parts = json.loads(output.read_text(encoding="utf-8"))["results"]
    assert "on purpose" in parts["scaler"]["wrong"][0]
    assert parts["scaler"]["found"] == {"seen": 1}
    assert parts["ranks"]["wrong"][0] == "ddp: EmoNavi v3.1: the ranks ended with different weights or emotions"
    assert not parts["tests"]["wrong"]
    assert "1 of 3 parts as they should be" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_it_needs_one_and_measures_nothing() -> None:
    done = check()
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr
    assert done.stdout == ""
