"""The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer: no access beyond a tensor, no undefined
arithmetic."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from emo_hf.optim.kernels.build import CACHE_VARIABLE, FLAGS_VARIABLE, find_compiler

FOLDER = Path(__file__).parent
TESTS = ("test_kernels.py",)
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"


@cache
def libasan() -> Path | None:
    """The sanitizer's library, if the compiler has one; it has to be there before Python is."""
    compiler = find_compiler()
    if platform.system() != "Linux" or compiler is None:
        return None
    command = [*compiler, "-print-file-name=libasan.so"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    return path if path.is_absolute() else None


@pytest.mark.skipif(libasan() is None, reason="the C compiler has no libasan.so here")
@pytest.mark.long
def test_the_kernels_touch_nothing_beyond_their_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = find_compiler()
    assert compiler is not None
    monkeypatch.setenv(FLAGS_VARIABLE, FLAGS)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    environment = os.environ | {
        "CC": f"env -u LD_PRELOAD {shlex.join(compiler)}",  # the compiler itself shall not run under the sanitizer
        "LD_PRELOAD": str(libasan()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=no", *TESTS]
    command += ["-k", "not in_place_change"]  # where torch throws: the sanitizer does not know its C++ library
    result = subprocess.run(
        command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[:5000] + result.stdout[-5000:]
    assert len(list(tmp_path.iterdir())) == 1  # it was this library that they ran
