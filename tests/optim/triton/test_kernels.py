"""Runs what is written for the Triton kernels in a process of its own: on a GPU, else under Triton's interpreter.

The interpreter is switched on before Triton is imported, and for a whole process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emo_hf.optim.kernels.gpu.available import INTERPRETER_VARIABLE, has_triton

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed (pip install triton)")


def in_a_process(*command: str, interpreted: bool) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop(INTERPRETER_VARIABLE, None)
    if interpreted:
        environment[INTERPRETER_VARIABLE] = "1"
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


@needs_triton
@pytest.mark.parametrize("name", ["elementwise", "fact", "formats", "eight_bits", "optimizers", "trust"])
def test_the_kernels_are_right(name: str) -> None:
    file = str((HERE / f"on_device_{name}.py").relative_to(ROOT))
    done = in_a_process("-m", "pytest", "-q", "-n", "0", file, interpreted=not torch.cuda.is_available())
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@needs_triton
def test_the_kernels_compile_for_gpus_and_move_sixteen_bytes_at_once() -> None:
    done = in_a_process(str(HERE / "compile_for_gpus.py"), interpreted=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compiled" in done.stdout


def test_without_triton_torchs_operators_are_chosen_as_before() -> None:
    done = in_a_process(str(HERE / "choose_without_triton.py"), interpreted=False)
    assert done.returncode == 0, done.stdout + done.stderr
