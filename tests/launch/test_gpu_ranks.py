"""The script for what only GPUs can show: its code runs here on CPUs, and it tells failure from success."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_ranks.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


@pytest.mark.long
def test_ranks_on_cpus_end_the_same_and_resume() -> None:
    done = script("--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ddp, 2 ranks, gloo: as it should be" in done.stdout
    assert "fsdp2, no stall: not shown" in done.stdout


@pytest.mark.long
def test_ranks_that_drift_apart_are_found_out() -> None:
    done = script("--cpu", "--emo_sync", "local", "--only", "EmoNavi v3.1")
    assert done.returncode == 1
    assert "EmoNavi v3.1: the ranks ended with different weights or emotions" in done.stdout


@pytest.mark.skipif(torch.cuda.device_count() >= 2, reason="there are GPUs")
def test_without_gpus_it_says_so_in_a_sentence_and_fails() -> None:
    done = script()
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("gpu_ranks.py needs 2 GPUs and found")
