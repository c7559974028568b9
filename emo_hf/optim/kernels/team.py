"""Who works on a step: the threads of torch's own OpenMP, or new ones."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os

import torch

from emo_hf.optim.kernels.library import Library, Team

IMPORTED_BY = os.getpid()


def team_for(elements: int, library: Library) -> Team:
    """The team for so many elements: the whole pool, which would end threads that are left out, or new ones."""
    threads = torch.get_num_threads()
    if threads == 1 or elements < 2 * library.piece:
        return Team(1, None)
    if pool():
        return Team(threads, pool())
    return Team(min(threads, library.most_threads, elements // library.piece), None)


def pool() -> int | None:
    """The address of GOMP_parallel in torch's own OpenMP; None in a forked process, where its threads are gone."""
    return find_pool() if os.getpid() == IMPORTED_BY else None


@functools.cache
def find_pool() -> int | None:
    """The address of GOMP_parallel, if GNU's OpenMP came with torch and is what it has loaded."""
    for library in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*.so*")):
        with contextlib.suppress(OSError, AttributeError):  # another one is loaded, say the system's
            loaded = ctypes.CDLL(library, mode=os.RTLD_NOLOAD)
            return ctypes.cast(loaded.GOMP_parallel, ctypes.c_void_p).value
    return None
