"""The weights that another node has put into a shared folder: read with a bound in time and size, and checked.

The folder belongs to nobody. What lies there may be partial, foreign, huge, no file at all, or on a file system that
does not answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from emo_hf.nodes.averaging import differ

MOST_STEPS = 10**9
SPARE_BYTES = 1 << 20
WIDEST = 8  # bytes of an element

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


def read_peer(file: Path, params: Mapping[str, Tensor]) -> Published:
    """Read what a node has published, and see that it fits the parameters.

    Raises:
        Unusable: if it cannot be used.
        OSError: if it cannot be read.
    """
    most = SPARE_BYTES + sum(SPARE_BYTES // 1024 + WIDEST * param.numel() for param in params.values())
    if not file.is_file():  # a pipe, say, from which a read may wait for ever
        raise Unusable("it is not a file")
    if (size := file.stat().st_size) > most:
        raise Unusable(f"it has {size} bytes, and this model needs {most} at most")
    try:
        data = file.read_bytes()
        weights = load(data)
        note = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        life, steps = str(note["life"]), int(note["steps"])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable("it is not what a node writes, or not the whole of it") from error
    if not 0 < steps <= MOST_STEPS or len(life) > 64:
        raise Unusable(f"it is said to have {str(note['steps'])[:20]} steps behind it")
    mine, theirs = ({name: tuple(tensor.shape) for name, tensor in some.items()} for some in (params, weights))
    if mine != theirs:
        raise Unusable(f"it does not fit this model: {differ(mine, theirs)}")
    for name, tensor in weights.items():
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise Unusable(f"its {name} is not finite")
    return Published(life, steps, weights)


def within(deadline: float, work: Callable[..., T], *arguments: Any) -> T:
    """The result of some work, in a thread of its own: a file system may never answer.

    Raises:
        Unusable: if there is none at the deadline, by `time.monotonic()`.
        Exception: what the work raises.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001  it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=max(deadline - time.monotonic(), 0.001))
    except TimeoutError:
        raise Unusable("it could not be read in time") from None
