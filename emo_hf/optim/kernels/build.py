"""Compiles `kernels.c` once per machine, with whatever C compiler there is, and loads it.

It takes about half a second; the library is kept in the user's cache folder under a name that stands for the source,
the compiler and the processor, so that a home shared by unlike machines is safe. Without a compiler there are no
kernels, and one line of log says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
CACHE_VARIABLE = "EMO_HF_CACHE"

FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-pthread", "-fopenmp-simd", "-ffp-contract=off")
LOOSE = ("-fno-math-errno", "-fno-trapping-math")  # roots and comparisons may then be vectorized; no result changes
TUNING = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts
TIMEOUT = 60.0  # seconds

logger = logging.getLogger(__name__)


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; the attempt is made once per process."""
    compiler = find_compiler()
    if compiler is None:
        logger.warning("no C compiler found (CC, cc, gcc, clang): the optimizer steps in plain PyTorch, more slowly")
        return None
    try:
        return load(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or "").strip() or str(error)
        logger.warning(
            "%s could not compile kernels (%s): the optimizer steps in plain PyTorch, more slowly",
            compiler,
            said.splitlines()[-1],
        )
        return None


def find_compiler() -> str | None:
    """The path of a C compiler: `$CC` if it is set and there, otherwise the system's."""
    names = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name]
    return next((path for path in map(shutil.which, names) if path), None)


def load(compiler: str) -> ctypes.CDLL:
    """The library from the cache, or built into it; where there is no cache, from a folder that goes at once."""
    name = f"kernels-{fingerprint(compiler)}.so"
    try:
        folder = cache_folder()
        if not (folder / name).exists():
            build(compiler, folder / name)
        return ctypes.CDLL(str(folder / name))
    except OSError:
        with tempfile.TemporaryDirectory(prefix="emo_hf-") as temporary:
            build(compiler, Path(temporary) / name)
            return ctypes.CDLL(str(Path(temporary) / name))


def cache_folder() -> Path:
    """`$EMO_HF_CACHE`, or `emo_hf` in the user's cache folder; readable by the user alone when it is made here."""
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path(parent) / "emo_hf")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def fingerprint(compiler: str) -> str:
    """What a library depends on: the source, how it is compiled, and the instructions that the processor has."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    for part in (compiler, *FLAGS, *LOOSE, platform.platform(), platform.machine(), processor_flags()):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def processor_flags() -> str:
    """The processor's instruction sets, as Linux lists them, otherwise its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def build(compiler: str, target: Path) -> None:
    """Compile the kernels for this processor into `target`; processes that do so at once do not disturb each other.

    Raises:
        subprocess.SubprocessError: if the compiler cannot.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as folder:
        library = Path(folder) / target.name
        for tuning in TUNING:
            command = [compiler, *FLAGS, *LOOSE, *tuning, str(SOURCE), "-o", str(library), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
            if result.returncode == 0:
                break
        result.check_returncode()
        library.replace(target)
    logger.info("compiled %s with %s into %s", SOURCE.name, compiler, target)
