"""The weights that another node has put into a shared folder: read with a bound in time and size, and checked.

The folder belongs to nobody. What lies there may be partial, foreign, huge, no file at all, or on a file system that
does not answer.
"""

from __future__ import annotations

import json
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

CHUNK = 1 << 24
MOST_STEPS = 10**9
SPARE_BYTES = 1 << 20
WIDEST = 8  # bytes of an element

Signature: TypeAlias = "tuple[int, int, int]"
"""When a file was changed, its size and its number."""

T = TypeVar("T")


class Unusable(Exception):
    """What another node has published cannot be used; the message says why."""


class Published(NamedTuple):
    """What a node has published.

    Attributes:
        life: which run of the node it is from.
        steps: how many steps of that run lie behind it.
        weights: the weights by name.
    """

    life: str
    steps: int
    weights: dict[str, Tensor]


def newest_first(files: Iterable[Path]) -> list[tuple[Path, Signature]]:
    """Files in the order of their age, and what changes with them."""
    return sorted(((file, _signature(file)) for file in files), key=lambda each: each[1], reverse=True)


def _signature(file: Path) -> Signature:
    try:
        state = file.stat()
    except OSError:  # gone, or a circle of links: whoever reads it will say so
        return (0, 0, 0)
    return (state.st_mtime_ns, state.st_size, state.st_ino)


def read_peer(file: Path, params: Mapping[str, Tensor], deadline: float) -> Published:
    """Read what a node has published.

    Args:
        file: where it lies.
        params: the parameters that it has to fit.
        deadline: the time, by `time.monotonic()`, when it must have been read.

    Raises:
        Unusable: if it cannot be used.
    """
    most = SPARE_BYTES + sum(SPARE_BYTES // 1024 + WIDEST * param.numel() for param in params.values())
    try:
        data = within(deadline, lambda: _bytes_of(file, most, deadline))
        weights = load(data)
        note = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        life, steps = str(note["life"]), int(note["steps"])
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable("it is not what a node writes, or not the whole of it") from error
    if not 0 < steps <= MOST_STEPS or len(life) > 64:
        raise Unusable(f"it is said to have {str(note['steps'])[:20]} steps behind it")
    for name in sorted(params.keys() | weights.keys()):
        mine, theirs = (tuple(some[name].shape) if name in some else "missing" for some in (params, weights))
        if mine != theirs:
            raise Unusable(f"it does not fit this model: {name} is {theirs} there and {mine} here")
        if not (weights[name].is_floating_point() and weights[name].isfinite().all()):
            raise Unusable(f"its {name} is not finite")
    return Published(life, steps, weights)


def _bytes_of(file: Path, most: int, deadline: float) -> bytes:
    opened = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):  # a pipe, say, from which a read may wait for ever
            raise Unusable("it is not a file")
        if found.st_size > most:
            raise Unusable(f"it has {found.st_size} bytes, and this model needs {most} at most")
        chunks: list[bytes] = []
        while chunk := os.read(opened, CHUNK):
            chunks.append(chunk)
            if time.monotonic() > deadline or sum(map(len, chunks)) > most:
                raise Unusable("it could not be read in time, or grew meanwhile")
        return b"".join(chunks)
    finally:
        os.close(opened)


def within(deadline: float, work: Callable[[], T]) -> T:
    """The result of some work, in a thread of its own: a file system may never answer.

    Raises:
        Unusable: if there is none at the deadline, by `time.monotonic()`.
        OSError: if the work does.
    """
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except (OSError, MemoryError, Unusable) as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = answers.get(timeout=max(deadline - time.monotonic(), 0.001))
    except queue.Empty:
        raise Unusable("it could not be read in time") from None
    if error is not None:
        raise error if isinstance(error, (OSError, Unusable)) else Unusable("there is no memory for it")
    return result  # type: ignore[return-value]
