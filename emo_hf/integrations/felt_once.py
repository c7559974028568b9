"""A loss is felt once, though several taps may lie on its way to backward."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Depth(threading.local):
    value = 0


_depth = _Depth()


@contextmanager
def unfelt() -> Iterator[None]:
    """A while in which no backward pass of this thread is felt by `feel_backward`."""
    _depth.value += 1
    try:
        yield
    finally:
        _depth.value -= 1


def feels() -> bool:
    """Whether a backward pass that begins here and now may be felt."""
    # Autograd's own threads, in which backward passes within others run on a GPU, were not made by Python.
    return not _depth.value and not isinstance(threading.current_thread(), threading._DummyThread)
