"""Compiles the C sources of this folder once per machine, with whatever C compiler there is, and loads the library.

It takes about a second; the library is kept in the user's cache folder under a name that stands for the sources, the
compiler and the processor, so that a home shared by unlike machines is safe. Without a compiler there are no kernels,
and one line of log says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
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
        return load(compiler)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.warning(
            "%s could not compile kernels (%s): the optimizer steps in plain PyTorch, more slowly",
            shlex.join(compiler),
            _last_line(error),
        )
        return None


def find_compiler() -> tuple[str, ...] | None:
    """The command of a C compiler: `$CC` if it is set and works out (`ccache gcc`, say), otherwise the system's."""
    asked = os.environ.get("CC", "")
    commands = [(asked,), tuple(_split(asked)), ("cc",), ("gcc",), ("clang",)]
    for name, *arguments in filter(None, commands):
        path = shutil.which(name) if name else None
        if path:
            return path, *arguments
    return None


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation that does not end
        return []


def load(compiler: Sequence[str]) -> Library:
    """The library from the cache, or built into it; otherwise from a folder that goes at once."""
    made_from = fingerprint(compiler)
    no_cache: Exception | None = None
    try:
        folder = cache_folder()
        why_not = objection(folder)
        if why_not is None:
            return _from_cache(folder, made_from) or build(compiler, folder, made_from)
        logger.warning("%s: the kernels are compiled for this process alone", why_not)
    except (OSError, subprocess.CalledProcessError) as error:  # a full disk shows as either
        no_cache = error
    with tempfile.TemporaryDirectory(prefix="emo_hf-") as temporary:
        library = build(compiler, Path(temporary), made_from)
    if no_cache is not None:
        logger.info("no cache for the kernels (%s): they are compiled for this process alone", _last_line(no_cache))
    return library


def _from_cache(folder: Path, made_from: str) -> Library | None:
    path = find_library(folder, made_from)
    if path is None:
        return None
    try:
        return Library(ctypes.CDLL(str(path)))
    except OSError as error:
        logger.warning("%s cannot be used (%s): the kernels are compiled anew", path, error)
        path.unlink(missing_ok=True)
        return None


def _last_line(error: Exception) -> str:
    said = (getattr(error, "output", None) or "").strip() or str(error)
    return str(said.splitlines()[-1])


def fingerprint(compiler: Sequence[str]) -> str:
    """What a library depends on: the sources, how they are compiled, and the instructions that the processor has."""
    digest = hashlib.sha256()
    for source in sources("*.[ch]"):
        digest.update(source.read_bytes() + b"\0")
    for part in (*compiler, *FLAGS, *LOOSE, *more_flags(), platform.platform(), platform.machine(), processor_flags()):
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


def build(compiler: Sequence[str], folder: Path, made_from: str) -> Library:
    """Compile the sources for this processor; processes that do so at once do not disturb each other.

    Args:
        compiler: its command.
        folder: where the library is put, once it has been loaded.
        made_from: the fingerprint that goes into its name.

    Raises:
        subprocess.SubprocessError: if the compiler cannot, or does not come to an end.
        OSError: if the library cannot be written or loaded.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as temporary:
        path = Path(temporary) / "kernels.so"
        files = [str(source) for source in sources("*.c")]
        for tuning in TUNING:
            command = [*compiler, *FLAGS, *LOOSE, *tuning, *more_flags(), *files, "-o", str(path), "-lm"]
            code, said = _run(command, Path(temporary) / "said")
            if code == 0:
                break
        else:
            raise subprocess.CalledProcessError(code, command, output=said)
        library = Library(ctypes.CDLL(str(path)))
        path.chmod(0o700)  # whatever the umask is, or it would not be loaded next time
        target = folder / library_name(made_from, path.read_bytes())
        path.replace(target)
    logger.info("compiled kernels with %s into %s", shlex.join(compiler), target)
    return library


def _run(command: list[str], output: Path) -> tuple[int, str]:
    """Run a command to its end, or end it and whatever it has begun; its exit status and what it said.

    Raises:
        subprocess.TimeoutExpired: if it takes too long.
    """
    with output.open("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = None
        try:
            code = process.wait(TIMEOUT)
        finally:
            if code != 0:
                _end_with_children(process)
        said.seek(0)
        return code, said.read()


def _end_with_children(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
    process.kill()
    process.wait()
