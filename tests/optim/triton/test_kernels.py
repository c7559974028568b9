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

from emo_hf import FAMILY
from emo_hf.optim.kernels.gpu import available
from emo_hf.optim.kernels.gpu.available import INTERPRETER_VARIABLE, has_triton

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

RUNS = {
    "are right": (["-m", "pytest", "-q", "-n", "0", str(HERE / "on_device.py")], " passed"),
    "compile for GPUs and move sixteen bytes at once": ([str(HERE / "compile_for_gpus.py")], "compiled"),
}


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed (pip install triton)")
@pytest.mark.long
@pytest.mark.parametrize("how", RUNS)
def test_the_kernels(how: str) -> None:
    arguments, said = RUNS[how]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop(INTERPRETER_VARIABLE, None)
    if said == " passed" and not torch.cuda.is_available():
        environment[INTERPRETER_VARIABLE] = "1"
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout


class OnGpu:
    """What the choice reads of a parameter."""

    dtype, device = torch.float32, torch.device("cuda:0")


@pytest.mark.parametrize("installed", [False, True])
def test_without_a_triton_that_works_torchs_operators_are_chosen(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to choose."""

    def chosen(name: str) -> str:
        optimizer = FAMILY[name]([torch.nn.Parameter(torch.ones(1))])
        return optimizer._buckets.implementation(optimizer.param_groups[0], OnGpu())  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "triton", None)  # type: ignore[arg-type]
    monkeypatch.setattr(available, "has_triton", lambda: installed)
    available._launches.cache_clear()
    expected = {"emonavi": "fused", "emolynx": "foreach", "emofact": "foreach", "emoneco": "single"}
    assert {name: chosen(name) for name in expected} == expected
    available._launches.cache_clear()
    monkeypatch.setattr(available, "_launches", lambda device: True)
    assert not installed or chosen("emolynx") == "triton"
