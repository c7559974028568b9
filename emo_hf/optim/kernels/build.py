"""Compiles the C sources of this folder once per machine, with whatever C compiler there is, and loads the library.

It takes about a second; the library is kept in the user's cache folder under a name that stands for the sources, the
compiler and the processor, so that a home shared by unlike machines is safe. What is loaded runs with the rights of
this user: it has to belong to this user, as its folder has, and nobody else may write to either. Without a compiler
there are no kernels, and one line of log says so.
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
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emo_hf.optim.kernels.library import Library

SOURCES = Path(__file__).parent
CACHE_VARIABLE = "EMO_HF_CACHE"
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
    words: list[str] = []
    with contextlib.suppress(ValueError):  # a quotation that does not end
        words = shlex.split(asked)
    for name, *arguments in filter(None, [(asked,), words, ("cc",), ("gcc",), ("clang",)]):
        path = shutil.which(name) if name else None
        if path:
            return path, *arguments
    return None


def load(compiler: Sequence[str]) -> Library:
    """The library from the cache, or built into it; otherwise from a folder that goes at once."""
    name = f"kernels-{fingerprint(compiler)}.so"
    no_cache: Exception | None = None
    try:
        folder = cache_folder()
        why_not = objection(folder)
        if why_not is None:
            return _from_cache(folder / name) or build(compiler, folder / name)
        logger.warning("%s: the kernels are compiled for this process alone", why_not)
    except (OSError, subprocess.CalledProcessError) as error:  # a full disk shows as either
        no_cache = error
    with tempfile.TemporaryDirectory(prefix="emo_hf-") as temporary:
        library = build(compiler, Path(temporary, name))
    if no_cache is not None:
        logger.info("no cache for the kernels (%s): they are compiled for this process alone", _last_line(no_cache))
    return library


def cache_folder() -> Path:
    """`$EMO_HF_CACHE`, or `emo_hf` in the user's cache folder; readable by the user alone when it is made here.

    Raises:
        OSError: if there is none and it cannot be made.
    """
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path(parent) / "emo_hf")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def objection(path: Path) -> str | None:
    """Why nothing may be loaded from a folder, or a library be loaded; None if it is this user's alone."""
    if not hasattr(os, "geteuid"):  # Windows has neither these owners nor these modes
        return None
    status = path.stat()
    if status.st_uid != os.geteuid():
        return f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}, who runs this"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} may be changed by others (mode {stat.S_IMODE(status.st_mode):o}): chmod go-w would prevent it"
    return None


def _from_cache(path: Path) -> Library | None:
    if not os.path.lexists(path):
        return None
    try:
        why_not = f"{path} is a link" if path.is_symlink() else objection(path)
        if why_not is None:
            return Library(ctypes.CDLL(str(path)))
    except OSError as error:
        why_not = f"{path} cannot be used ({error})"
    logger.warning("%s: it is not loaded, and the kernels are compiled anew", why_not)
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


def build(compiler: Sequence[str], target: Path) -> Library:
    """Compile the sources for this processor; processes that do so at once do not disturb each other.

    Args:
        compiler: its command.
        target: where the library is put, once it has been loaded.

    Raises:
        subprocess.SubprocessError: if the compiler cannot, or does not come to an end.
        OSError: if the library cannot be written or loaded.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as temporary:
        path = Path(temporary) / target.name
        files = [str(source) for source in sources("*.c")]
        for tuning in TUNING:
            command = [*compiler, *FLAGS, *LOOSE, *tuning, *more_flags(), *files, "-o", str(path), "-lm"]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                errors="replace", timeout=TIMEOUT, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                break
        else:
            done.check_returncode()
        library = Library(ctypes.CDLL(str(path)))
        path.chmod(0o700)  # whatever the umask is, or it would not be loaded next time
        path.replace(target)
    logger.info("compiled kernels with %s into %s", shlex.join(compiler), target)
    return library
