"""Where the tensors of one launch lie, on their device: filled without a wait, and kept while nothing changes."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter, or_
from typing import Any

import torch

from emo_hf.optim.kernels.checks import UnfitError, check_memory, check_numbers_of_elements
from emo_hf.optim.kernels.gpu.available import WORKED_ON, works_on
from emo_hf.optim.update import PLAIN, of_one_layout

KEPT = 64
"""Tables that are kept; one is a few bytes for each tensor, or for some thousand elements."""

KEPT_IN = (*WORKED_ON, torch.int8, torch.uint8)
"""What state and compensation may be in."""

TOGETHER = 16
"""Bytes that a thread moves at once where all tensors begin at a multiple of them."""

_dtype, _device = attrgetter("dtype"), attrgetter("device")


def check_tensors(**lists: list[torch.Tensor]) -> None:
    """Check that the kernels can work on all tensors, and that each has as many elements as its parameter.

    It runs for all tensors of every step, so it compares whole lists.

    Args:
        lists: the parameters, and what belongs to each of them, by the names that an error calls one of them.

    Raises:
        UnfitError: if a tensor is not plain, the tensors of a list are not of one dtype that the kernels know, all
            of them are not on one device that they work on, or those of one parameter have different layouts.
        RuntimeError: if something has another number of elements than its parameter.
    """
    params = lists["parameter"]
    in_floats = ("parameter", "gradient")
    counts = list(map(torch.Tensor.numel, params))
    contiguous = True
    for name, tensors in lists.items():
        kinds, dtypes, devices = (set(map(get, tensors)) for get in (type, _dtype, _device))
        known = WORKED_ON if name in in_floats else KEPT_IN
        if not kinds.issubset(PLAIN) or len(dtypes) > 1 or not dtypes.issubset(known):
            raise UnfitError(
                f"of the {len(tensors)} {name}s some are no plain tensors of one dtype: leave native=None"
            )
        if len(devices | {params[0].device}) > 1 or not works_on(params[0].device):
            raise UnfitError(f"there are no kernels for all of the {name}s on {devices}: leave native=None")
        check_numbers_of_elements(name, tensors, counts)
        contiguous = contiguous and all(map(torch.Tensor.is_contiguous, tensors))
    if not contiguous and not all(of_one_layout(*own) for own in zip(*lists.values(), strict=True)):
        raise UnfitError("a parameter, its gradient and its state do not lie in memory alike: leave native=None")


def addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Where elements lie.

    Raises:
        RuntimeError: if a tensor with elements has no memory.
    """
    found = list(map(torch.Tensor.data_ptr, tensors))
    if 0 in found:
        check_memory(next((i for i, at in enumerate(found) if not at and tensors[i].numel()), -1))
    return found


def are_aligned(numbers: Sequence[int]) -> bool:
    """Whether all are multiples of what a thread moves at once."""
    return functools.reduce(or_, numbers, 0) % TOGETHER == 0


def begins(lengths: Sequence[int]) -> list[int]:
    """Where each of some runs begins that follow one another."""
    return [0, *accumulate(lengths)][: len(lengths)]


def table(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Rows of one length as int64 on a device; the same one while its numbers are the same."""
    return _table(tuple(number for row in rows for number in row), device, _stream(device))


def owners(programs: Sequence[int], device: torch.device) -> torch.Tensor:
    """For each program the tensor that it belongs to, where tensor i has programs[i] of them, as int32 on a device."""
    return _owners(tuple(programs), device, _stream(device))


@functools.lru_cache(KEPT)
def _table(numbers: tuple[int, ...], device: torch.device, stream: Any) -> torch.Tensor:
    return _sent(torch.frombuffer(array("q", numbers), dtype=torch.int64), device)


@functools.lru_cache(KEPT)
def _owners(programs: tuple[int, ...], device: torch.device, stream: Any) -> torch.Tensor:
    each = torch.frombuffer(array("q", programs), dtype=torch.int64)
    return _sent(torch.repeat_interleave(torch.arange(len(programs), device="cpu"), each).int(), device)


def _sent(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers on their way to a device. From pinned memory nobody waits for them, and torch frees that afterwards."""
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def _stream(device: torch.device) -> Any:
    """What runs in its order what it is given: a table is filled and read on the same one."""
    return None if device.type == "cpu" else torch.get_device_module(device).current_stream(device)
