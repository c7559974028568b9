"""What a kernel relies on, checked where the pointers are taken: a kernel is handed addresses and trusts them.

Each check is a few comparisons of whole lists, because it runs for all tensors of every step; which tensor it is that
does not hold is looked for afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NoReturn

import torch

from emo_hf.optim.kernels.build import kernels
from emo_hf.optim.kernels.library import BY_DTYPE
from emo_hf.optim.update import PLAIN

AFTER_RESIZING = (
    "If the parameter was resized since its first step, make the optimizer anew after resizing, or delete its state "
    "with optimizer.state.pop(parameter)."
)
AFTER_BACKWARD = (
    "If the parameter was resized since backward(), call optimizer.zero_grad() after resizing, then backward() again."
)

shape = attrgetter("shape")
count_of_elements = torch.Tensor.numel


class UnfitError(RuntimeError):
    """Tensors are not plain, contiguous and of one dtype in main memory, the only ones that kernels work on."""


def all_fit(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the kernels can work on a list: plain contiguous tensors in main memory, of one dtype that they know.

    Subclasses (a DTensor, say) are left to PyTorch, which knows where their elements are.
    """
    dtype = tensors[0].dtype if tensors else torch.float32  # what follows runs for every tensor of every step
    fit = all([type(t) in PLAIN and t.dtype is dtype and t.is_cpu and t.is_contiguous() for t in tensors])
    return fit and known(dtype)


def known(dtype: torch.dtype) -> bool:
    """Whether the kernels can read a dtype; whether they know float16 is up to the compiler."""
    if dtype is torch.float16:
        library = kernels()
        return library is not None and library.has_float16
    return dtype in BY_DTYPE


def check_tensors(**lists: Sequence[torch.Tensor]) -> None:
    """Check that there are as many tensors in each list, and that the kernels can work on all of them.

    Args:
        lists: the parameters, and what belongs to each of them, by the names that an error calls one of them.

    Raises:
        RuntimeError: if the lists differ in length.
        UnfitError: if the kernels cannot work on a tensor.
    """
    lengths = {name: len(tensors) for name, tensors in lists.items()}
    if len(set(lengths.values())) > 1:
        raise RuntimeError(f"each parameter needs one of each, but their numbers are {lengths}")
    for name, tensors in lists.items():
        if not all_fit(tensors):
            i = next((i for i, tensor in enumerate(tensors) if not all_fit([tensors[0], tensor])), 0)
            t = tensors[i]
            raise UnfitError(
                f"{_which(name, i, len(tensors))} is a {type(t).__name__} of {t.dtype} on {t.device}"
                f"{'' if t.is_contiguous() else ', not contiguous'}: the kernels need plain contiguous tensors on "
                "cpu, of torch.float32, torch.bfloat16 or torch.float16 and of one dtype. Leave native=None, which "
                "has torch move the others."
            )


def check_same_shapes(params: Sequence[torch.Tensor], **lists: Sequence[torch.Tensor]) -> None:
    """Check that what belongs to a parameter has its shape.

    Raises:
        RuntimeError: if something has another.
    """
    needed = list(map(shape, params))
    for name, tensors in lists.items():
        found = list(map(shape, tensors))
        if found != needed:
            _refuse(name, "shape", list(map(list, found)), list(map(list, needed)))


def check_numbers_of_elements(name: str, tensors: Sequence[torch.Tensor], needed: list[int]) -> None:
    """Check that tensors have so many elements.

    Raises:
        RuntimeError: if one has another number of them.
    """
    found = list(map(count_of_elements, tensors))
    if found != needed:
        _refuse(name, "number of elements", found, needed)


def check_memory(lacking: int) -> None:
    """Check what a kernel returned.

    Args:
        lacking: the index of the first parameter that has a null pointer, or −1.

    Raises:
        RuntimeError: if there is one.
    """
    if lacking >= 0:
        raise RuntimeError(
            f"parameter {lacking} of those that the kernel was handed, its gradient or its state has no memory: its "
            "storage was freed (resized to 0, as some sharding and offloading code does), and must be filled again "
            "before the step."
        )


def _refuse(name: str, quantity: str, found: Sequence[object], needed: Sequence[object]) -> NoReturn:
    i = next(i for i, pair in enumerate(zip(found, needed, strict=True)) if pair[0] != pair[1])
    raise RuntimeError(
        f"{_which(name, i, len(found))} has {quantity} {found[i]}, but its parameter needs {needed[i]}. "
        f"{AFTER_BACKWARD if name == 'gradient' else AFTER_RESIZING}"
    )


def _which(name: str, i: int, count: int) -> str:
    return f"{name.replace('_', ' ')} {i} of {count}"
