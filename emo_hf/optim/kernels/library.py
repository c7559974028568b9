"""The compiled library as Python sees it: structures, constants and functions of the C sources, with their types."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable
from ctypes import POINTER, c_float, c_int64, c_void_p
from typing import Any

import torch

from emo_hf.optim.update import Hyperparameters

NOTHING_LACKS_MEMORY = -1
"""What the functions return that have moved all tensors; otherwise it is the index of one whose pointer is null."""


class Team(ctypes.Structure):
    """`struct team` of common.h."""

    _fields_ = [("threads", c_int64), ("pool", c_void_p)]


class KernelHyperparameters(ctypes.Structure):
    """`struct hyperparameters` of common.h."""

    _fields_ = [(name, c_float) for name in ("lr", "decay", "keep", "beta1", "gain1", "beta2", "gain2", "eps")]

    @classmethod
    def of(cls, h: Hyperparameters) -> KernelHyperparameters:
        # The differences are taken in double precision, as torch's operators do.
        return cls(h.lr, h.decay, 1 - h.decay, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2, h.eps)


class Layout(ctypes.Structure):
    """`struct layout` of common.h; `BY_DTYPE` says which format a tensor has."""

    _fields_ = [(name, c_int64) for name in ("p", "g", "a", "b", "compensation", "leave_out", "seed")]


BY_DTYPE = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.int8: 4, torch.uint8: 5}
"""`enum format` of formats.h."""


class ElementwiseRule(ctypes.Structure):
    """`struct rule` of common.h."""

    _fields_ = [("state_tensors", c_int64), ("takes_scales", c_int64), ("run", c_void_p)]


ADDRESSES = POINTER(c_int64)  # an array of pointers to elements; common.c makes sure that they are of one size
COUNTS = POINTER(c_int64)
FLOATS = c_void_p

RULES = ("emo_navi", "emo_lynx", "emo_sign", "emo_fact_vector", "emo_neco", "emo_tion", "emo_zeal")
"""The elementwise rules that there are."""

TYPES: dict[str, list[Any]] = {
    "emo_elementwise": [
        POINTER(ElementwiseRule), POINTER(Team), c_int64, *[COUNTS] * 3, *[ADDRESSES] * 7, FLOATS, COUNTS,
        POINTER(Layout), POINTER(KernelHyperparameters),
    ],
    "emo_fact_matrices": [
        POINTER(Team), c_int64, COUNTS, COUNTS, *[ADDRESSES] * 5, FLOATS, c_int64, COUNTS, POINTER(Layout),
        POINTER(KernelHyperparameters),
    ],
    "emo_fact_large_matrix": [
        POINTER(Team), c_int64, c_int64, *[FLOATS] * 6, POINTER(Layout), POINTER(KernelHyperparameters),
    ],
    "emo_count_not_finite": [POINTER(Team), c_int64, COUNTS, COUNTS, ADDRESSES, c_int64, COUNTS],
}  # fmt: skip


def addresses(tensors: list[torch.Tensor] | None) -> ctypes.Array[ctypes.c_int64] | None:
    """Where the tensors' elements lie, as the kernels read it."""
    return None if tensors is None else integers(map(torch.Tensor.data_ptr, tensors))


def integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    """Counts, or addresses of elements, as the kernels read them."""
    numbers = array("q", list(values))  # much faster to fill than an array of ctypes, and from a list of exact size
    return (ctypes.c_int64 * len(numbers)).from_buffer(numbers)


class Library:
    """The functions and constants of the C sources.

    Attributes:
        elementwise, fact_matrices, fact_large_matrix, count_not_finite: the functions; what they take is written
            beside them in C.
        piece: elements of an elementwise task.
        blocks: row blocks in which a large matrix is taken apart.
        most_threads: threads that the library starts at most, without torch's pool.
        block: elements of an 8-bit state tensor that share a size.
        has_float16: whether the compiler knows float16.

    Raises:
        OSError: if one of them is missing.
    """

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._loaded = loaded
        try:
            self.elementwise, self.fact_matrices, self.fact_large_matrix, self.count_not_finite = map(
                self._function, TYPES
            )
            self.piece, self.blocks, self.most_threads, self.block = map(
                self._constant, ("emo_piece", "emo_blocks", "emo_most_threads", "emo_block")
            )
            self.has_float16 = bool(self._constant("emo_has_float16"))
            self._rules = {name: ElementwiseRule.in_dll(loaded, name) for name in RULES}
        except (AttributeError, ValueError) as error:
            raise OSError(f"the library lacks what was compiled into it: {error}") from error

    def _function(self, name: str) -> Any:
        function = getattr(self._loaded, name)
        function.argtypes = TYPES[name]
        function.restype = c_int64
        return function

    def _constant(self, name: str) -> int:
        return c_int64.in_dll(self._loaded, name).value

    def rule(self, name: str) -> ElementwiseRule:
        """An elementwise rule by its name in C.

        Raises:
            ValueError: if there is none of this name.
        """
        if name not in self._rules:
            raise ValueError(f"there is no rule {name}: choose one of {', '.join(RULES)}")
        return self._rules[name]
