"""Runs the kernels of `kernels.c` over lists of tensors, on as many threads as torch is set to use.

The interpreter lock is free while a kernel runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import torch

from emo_hf.optim.kernels.build import kernels
from emo_hf.optim.rules.rule import PLAIN, Implementation, State, StepSize, column, where
from emo_hf.optim.tensors.chunking import PIECE

MOST_THREADS = 256
"""As many as kernels.c starts."""

IMPORTED_BY = os.getpid()

WORKED_ON = (torch.float32, torch.bfloat16, torch.float16)  # the last two in float32 copies

Kernel: TypeAlias = "Callable[..., None]"
Reference: TypeAlias = Any
"""What `ctypes.byref` gives: a kernel's pointer to a structure."""


class KernelSize(ctypes.Structure):
    """`struct size` of kernels.c."""

    _fields_ = [
        (name, ctypes.c_float) for name in ("step", "decay", "keep", "beta1", "gain1", "beta2", "gain2", "eps")
    ]

    @classmethod
    def of(cls, size: StepSize) -> KernelSize:
        # The differences are taken in double precision, as torch's operators do.
        keep, gain1, gain2 = 1 - size.decay, 1 - size.beta1, 1 - size.beta2
        return cls(size.step, size.decay, keep, size.beta1, gain1, size.beta2, gain2, size.eps)


def works_for(param: torch.Tensor) -> bool:
    """Whether the kernels are the best choice for a parameter; the first such one has them compiled or loaded."""
    return param.dtype in WORKED_ON and param.device.type == "cpu" and kernels() is not None


def kernel(name: str) -> Kernel:
    """A function of kernels.c.

    Raises:
        RuntimeError: if there are no kernels.
    """
    library = kernels()
    if library is None:
        raise RuntimeError("compile=True needs a C compiler, and none works here: leave compile=None")
    function: Kernel = getattr(library, name)
    return function


def fits(*tensors: torch.Tensor) -> bool:
    """Whether the kernels can work on these tensors: plain, contiguous float32 in main memory.

    Subclasses (a DTensor, say) are left to PyTorch, which knows where their elements are.
    """
    float32 = torch.float32  # it runs for every tensor of every step
    return all([type(t) in PLAIN and t.dtype is float32 and t.is_cpu and t.is_contiguous() for t in tensors])


def where_it_fits(run: Implementation, otherwise: Implementation) -> Implementation:
    """`run` for the parameters that the kernels can work on, `otherwise` for the others."""
    one_by_one = where(fits, run, otherwise)

    def update(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
        values = [value for state in states for value in state.values()]
        chosen = run if fits(*params, *grads, *values) else one_by_one  # one look at all of them is the faster one
        chosen(params, grads, states, size)

    return update


class Crew(ctypes.Structure):
    """`struct crew` of kernels.c."""

    _fields_ = [("threads", ctypes.c_int64), ("pool", ctypes.c_void_p)]


def crew(elements: int) -> Crew:
    """Who works on so many elements: the whole pool, which would end threads that are left out, or new ones."""
    threads = torch.get_num_threads()
    if threads == 1 or elements < 2 * PIECE:
        return Crew(1, None)
    return Crew(threads, pool()) if pool() else Crew(min(threads, MOST_THREADS, elements // PIECE), None)


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


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def pointers(tensors: Sequence[torch.Tensor]) -> ctypes.Array[ctypes.c_int64]:
    """The addresses of the tensors' elements."""
    return integers(map(torch.Tensor.data_ptr, tensors))


def integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    numbers = array("q", values)  # much faster to fill than an array of ctypes
    return (ctypes.c_int64 * len(numbers)).from_buffer(numbers)


def elementwise(name: str, keys: Sequence[str], otherwise: Implementation) -> Implementation:
    """An implementation by an elementwise kernel.

    Args:
        name: the kernel, which is handed the parameters, the gradients and the states under `keys`.
        keys: names of the state tensors.
        otherwise: what moves the parameters that the kernels cannot work on.
    """

    def run(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
        function = kernel(name)
        ends = integers(accumulate(map(torch.Tensor.numel, params)))
        workers = ctypes.byref(crew(ends[-1]))
        lists = [pointers(tensors) for tensors in (params, grads, *(column(states, key) for key in keys))]
        sizes = ctypes.byref(KernelSize.of(size))
        function(workers, ctypes.c_int64(len(params)), ends, *lists, sizes)
        torch.autograd.graph.increment_version(params)

    return where_it_fits(run, otherwise)
