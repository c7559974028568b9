"""The compiled library as Python sees it: structures, constants and functions of the C sources, with their types."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from itertools import accumulate
from typing import Any

import torch

from emo_hf.optim.update import Hyperparameters


class Team(ctypes.Structure):
    """`struct team` of common.h."""

    _fields_ = [("threads", c_int64), ("pool", c_void_p)]


class KernelHyperparameters(ctypes.Structure):
    """`struct hyperparameters` of common.h."""

    _fields_ = [(name, c_float) for name in ("lr", "decay", "keep", "beta1", "gain1", "beta2", "gain2", "eps")]

    @classmethod
    def of(cls, h: Hyperparameters) -> KernelHyperparameters:
        return cls(*numbers_of(h))


def numbers_of(h: Hyperparameters) -> tuple[float, ...]:
    """What kernels are told of a step; the differences are taken in double precision, as torch's operators do."""
    return h.lr, h.decay, 1 - h.decay, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2, h.eps


class Layout(ctypes.Structure):
    """`struct layout` of common.h; `BY_DTYPE` says which format a tensor has."""

    _fields_ = [(name, c_int64) for name in ("p", "g", "a", "b", "compensation", "leave_out", "seed")]


BY_DTYPE = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.int8: 4, torch.uint8: 5}
"""`enum format` of formats.h."""


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What parameters and gradients may be."""


RULES = ("emo_navi", "emo_lynx", "emo_sign", "emo_fact_vector", "emo_neco", "emo_zeal")
"""The elementwise rules that there are."""

INTEGERS = POINTER(c_int64)  # counts, or pointers to elements; common.c makes sure that these are of one size
LAST = [POINTER(Layout), POINTER(KernelHyperparameters)]
FUNCTIONS: dict[str, list[Any]] = {
    "emo_elementwise": [
        c_void_p, POINTER(Team), c_int64, *[INTEGERS] * 10, c_void_p, INTEGERS, *LAST,
    ],
    "emo_fact_matrices": [POINTER(Team), c_int64, *[INTEGERS] * 7, c_void_p, c_int64, INTEGERS, *LAST],
    "emo_fact_large_matrix": [POINTER(Team), c_int64, c_int64, *[c_void_p] * 6, *LAST],
    "emo_count_not_finite": [POINTER(Team), c_int64, *[INTEGERS] * 3, c_int64, INTEGERS],
}  # fmt: skip
CONSTANTS = ("emo_piece", "emo_blocks", "emo_most_threads", "emo_block", "emo_has_float16")


def addresses(tensors: Sequence[torch.Tensor] | None) -> ctypes.Array[ctypes.c_int64] | None:
    """Where the tensors' elements lie, as the kernels read it."""
    return None if tensors is None else integers(map(torch.Tensor.data_ptr, tensors))


def integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    """Counts, or addresses of elements, as the kernels read them."""
    numbers = array("q", list(values))  # much faster to fill than an array of ctypes, and from a list of exact size
    return (ctypes.c_int64 * len(numbers)).from_buffer(numbers)


class Library:
    """The functions and constants of the C sources.

    Attributes:
        rules: the addresses of the elementwise rules by their names in C.
        elementwise, fact_matrices, fact_large_matrix, count_not_finite: the functions; what they take is written
            beside them in C. They return −1 if they have moved all, or the index of a tensor whose pointer is null.
        piece: elements of an elementwise task.
        blocks: row blocks in which a large matrix is taken apart.
        most_threads: threads that the library starts at most, without torch's pool.
        block: elements of an 8-bit state tensor that share a size.
        has_float16: whether the compiler knows float16.

    Raises:
        OSError: if one of them is missing.
    """

    def __init__(self, loaded: ctypes.CDLL) -> None:
        try:
            functions = [getattr(loaded, name) for name in FUNCTIONS]
            constants = [c_int64.in_dll(loaded, name).value for name in CONSTANTS]
            self.rules = {name: ctypes.addressof(c_int64.in_dll(loaded, name)) for name in RULES}
        except (AttributeError, ValueError) as error:
            raise OSError(f"the library lacks what was compiled into it: {error}") from error
        for function, takes in zip(functions, FUNCTIONS.values(), strict=True):
            function.argtypes, function.restype = takes, c_int64
        self.elementwise, self.fact_matrices, self.fact_large_matrix, self.count_not_finite = functions
        self.piece, self.blocks, self.most_threads, self.block, has_float16 = constants
        self.has_float16 = bool(has_float16)


def ends_of(counts: Sequence[int], library: Library) -> ctypes.Array[ctypes.c_int64]:
    """Where tensors with so many elements end if they follow one another, each to the end of a block."""
    return integers(accumulate([-(-count // library.block) * library.block for count in counts]))
