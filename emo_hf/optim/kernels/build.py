"""Compiles the C sources of this folder once per machine, with whatever C compiler there is, and loads the library.

It takes about a second; the library is kept in the user's cache folder under a name that stands for the sources, the
compiler and the processor, so that a home shared by unlike machines is safe. Without a compiler there are no kernels,
and one line of log says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from emo_hf.optim.kernels.cache import cache_folder, find_library, library_name, objection
from emo_hf.optim.kernels.library import Library

SOURCES = Path(__file__).parent
FLAGS_VARIABLE = "EMO_HF_CFLAGS"
"""The environment variable with further compiler flags, for sanitizers and debuggers."""

FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-pthread", "-fopenmp-simd", "-ffp-contract=off")
LOOSE = ("-fno-math-errno", "-fno-trapping-math")  # roots and comparisons may then be vectorized; no result changes
TUNING = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts
TIMEOUT = 60.0  # seconds

logger = logging.getLogger(__name__)


@functools.cache
def kernels() -> Library | None:
    """The compiled kernels, or None where they cannot be had; the attempt is made once per process."""
    compiler = find_compiler()
    if compiler is None:
        logger.warning("no C compiler found (CC, cc, gcc, clang): the optimizer steps in plain PyTorch, more slowly")
        return None
    try:
        return Library(load(compiler))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
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
    """The library from the cache, or built into it; where there is none to trust, from a folder that goes at once."""
    made_from = fingerprint(compiler)
    try:
        folder = cache_folder()
        why_not = objection(folder)
        if why_not is None:
            return ctypes.CDLL(str(find_library(folder, made_from) or build(compiler, folder, made_from)))
        logger.warning("%s: the kernels are compiled for this process alone", why_not)
    except OSError as error:
        logger.info("no cache for the kernels (%s): they are compiled for this process alone", error)
    with tempfile.TemporaryDirectory(prefix="emo_hf-") as temporary:
        return ctypes.CDLL(str(build(compiler, Path(temporary), made_from)))


def fingerprint(compiler: str) -> str:
    """What a library depends on: the sources, how they are compiled, and the instructions that the processor has."""
    digest = hashlib.sha256()
    for source in sources("*.[ch]"):
        digest.update(source.read_bytes() + b"\0")
    for part in (compiler, *FLAGS, *LOOSE, *more_flags(), platform.platform(), platform.machine(), processor_flags()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def sources(pattern: str) -> list[Path]:
    """The files of C that lie beside this one.

    Raises:
        FileNotFoundError: if the package was installed without them.
    """
    found = sorted(SOURCES.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {SOURCES}: the package was installed without its C sources")
    return found


def more_flags() -> list[str]:
    return shlex.split(os.environ.get(FLAGS_VARIABLE, ""))


def processor_flags() -> str:
    """The processor's instruction sets, as Linux lists them, otherwise its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def build(compiler: str, folder: Path, made_from: str) -> Path:
    """Compile the sources for this processor; processes that do so at once do not disturb each other.

    Args:
        compiler: the path of the compiler.
        folder: where the library is put.
        made_from: the fingerprint that goes into its name.

    Raises:
        subprocess.SubprocessError: if the compiler cannot.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as temporary:
        library = Path(temporary) / "kernels.so"
        files = [str(source) for source in sources("*.c")]
        for tuning in TUNING:
            command = [compiler, *FLAGS, *LOOSE, *tuning, *more_flags(), *files, "-o", str(library), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
            if result.returncode == 0:
                break
        result.check_returncode()
        library.chmod(0o700)  # whatever the umask is, or it would not be loaded next time
        target = folder / library_name(made_from, library.read_bytes())
        library.replace(target)
    logger.info("compiled kernels with %s into %s", compiler, target)
    return target
