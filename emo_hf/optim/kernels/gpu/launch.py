"""Launches the kernels: one launch for the elements of all tensors of a kind, three for all matrices of a kind."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from itertools import accumulate
from operator import or_
from typing import Any

import torch

from emo_hf.optim.kernels.gpu.available import kernel, on, works_on
from emo_hf.optim.kernels.gpu.trust import if_trusted
from emo_hf.optim.kernels.library import numbers_of
from emo_hf.optim.kernels.tensors import KernelTensors, check_memory
from emo_hf.optim.state_keys import COLUMN_RMS, ROW_RMS
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation

BLOCK, BLOCKS = 1024, 4
"""Elements that a program moves at once, with four warps, and how often it does."""

REGION = {"ROWS": 16, "COLUMNS": 128, "STEPS": 8}
"""What one program works on of a matrix: so many columns, and STEPS times so many rows, which it holds at once."""

LENGTH, SHARES = 32, 32
"""Sizes of rows or columns that a program makes, and sums that it adds up for each at once."""

TOGETHER = 16
"""Bytes that a thread moves at once where all tensors begin at a multiple of them."""

KEPT = 64
"""Tables that are kept; one is a few bytes for each tensor, and for some thousand elements."""


def elementwise(rule: str, keys: Sequence[str], otherwise: Implementation) -> Implementation:
    """An implementation by an elementwise kernel; it leaves out what is to be left out, and knows 16 and 8 bits.

    Args:
        rule: the kernel's name in `source/elementwise.py`.
        keys: names of its state tensors, in its order.
        otherwise: what moves the parameters that the kernels cannot work on.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        move(rule, KernelTensors.in_memory_order(bucket, keys), h)

    return if_trusted(rule, run, otherwise, by_rows=False)


def matrices(otherwise: Implementation) -> Implementation:
    """An implementation of Fact for matrices; it leaves out what is to be left out, and knows 16 and 24 bits.

    Args:
        otherwise: moves the matrices that the kernels cannot work on.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        move_matrices(KernelTensors.of(bucket, [ROW_RMS, COLUMN_RMS]), h)

    return if_trusted("fact", run, otherwise, by_rows=True)


def move(rule: str, tensors: KernelTensors, h: Hyperparameters) -> None:
    """Move parameters by an elementwise kernel.

    Args:
        rule: the kernel's name in `source/elementwise.py`.
        tensors: what it works on, on one device.
        h: the numbers of the step; with `left_out`, elements without a finite gradient are left out and counted.

    Raises:
        UnfitError: if the kernels cannot work on a tensor. Nothing has been moved then.
        RuntimeError: if tensors do not belong together, or one has no memory.
    """
    tensors.check(works_on)
    params, states, count = tensors.params, tensors.states, len(tensors.params)
    elements = list(map(torch.Tensor.numel, params))
    programs = [-(-n // (BLOCK * BLOCKS)) for n in elements]
    if not sum(programs):
        return
    lists = [params, tensors.grads, *[*states, None, None][:2], tensors.compensation]
    at = [_addresses(of_kind, count) for of_kind in lists]
    at_sizes = [_addresses(sizes, count) for sizes in [*tensors.sizes, None, None][:2]]
    device = params[0].device
    with on(device):
        table = _table([*at, *at_sizes, elements, tensors.places or [0] * count], programs, device)
        left_out = table if h.left_out is None else h.left_out.counter(device)
        kernel("elementwise.move")[(sum(programs),)](
            table, count, left_out, _seed_of(h), *numbers_of(h),
            RULE=kernel(f"elementwise.{rule}"), CHANCE=tensors.has_chance,
            LEAVE_OUT=h.left_out is not None, P=_language(params), G=_language(tensors.grads),
            C=_language(tensors.compensation), A=_language(*states[:1]), B=_language(*states[1:]),
            ALIGNED=all(map(_are_aligned, at)), BLOCK=BLOCK, BLOCKS=BLOCKS,
        )  # fmt: skip
    torch.autograd.graph.increment_version(params)


def move_matrices(tensors: KernelTensors, h: Hyperparameters) -> None:
    """Move matrices by the kernels of `source/fact.py`.

    Args:
        tensors: parameters with two or more dims, and as states r and k of each.
        h: the numbers of the step; with `left_out`, elements without a finite gradient are left out and counted.

    Raises:
        UnfitError: if the kernels cannot work on a tensor. Nothing has been moved then.
        RuntimeError: if tensors do not belong together, or one has no memory.
    """
    heights, widths = tensors.check_matrices(works_on)
    params = tensors.params
    lists = [params, tensors.grads, *tensors.states, tensors.compensation]
    at = [_addresses(of_kind, len(params)) for of_kind in lists]
    alike: dict[bool, list[tuple[int, ...]]] = {}
    for p, g, r, k, c, height, width in zip(*at, heights, widths, strict=True):
        if height * width:
            aligned = width % TOGETHER == 0 and _are_aligned([p, g, c])
            alike.setdefault(aligned, []).append((p, g, r, k, c, height, width))
    for aligned, some in alike.items():
        with on(params[0].device):
            _move_matrices(tensors, h, [list(of_all) for of_all in zip(*some, strict=True)], aligned)
    torch.autograd.graph.increment_version(params)


def _move_matrices(tensors: KernelTensors, h: Hyperparameters, rows: list[list[int]], aligned: bool) -> None:
    """Move matrices; `rows` are their addresses, heights and widths."""
    r, k, _, heights, widths = rows[2:]
    device, count = tensors.params[0].device, len(r)
    below = [-(-height // (REGION["ROWS"] * REGION["STEPS"])) for height in heights]
    beside = [-(-width // REGION["COLUMNS"]) for width in widths]
    programs = [down * right for down, right in zip(below, beside, strict=True)]
    # Of the rows and of the columns: how many sums, out of how many shares, and where they begin.
    lengths, shares = [*heights, *widths], [*beside, *below]
    *sums_at, total = accumulate(map(int.__mul__, lengths, shares), initial=0)
    of_regions = _table([*rows, sums_at[:count], sums_at[count:]], programs, device)
    blocks = [-(-length // LENGTH) for length in lengths]
    of_sizes = _table([[*r, *k], lengths, [*widths, *heights], sums_at, shares], blocks, device)
    leave_out = h.left_out is not None
    sums = torch.empty(2 * total if leave_out else total, dtype=torch.float32, device=device)
    left_out = sums if h.left_out is None else h.left_out.counter(device)
    ways = {"G": _language(tensors.grads), "LEAVE_OUT": leave_out, "ALIGNED": aligned, **REGION}
    kernel("fact.squares")[(sum(programs),)](of_regions, count, sums, total, left_out, **ways)
    kernel("fact.sizes")[(sum(blocks),)](
        of_sizes, 2 * count, sums, total, h.beta1, 1 - h.beta1, h.eps,
        LEAVE_OUT=leave_out, LENGTH=LENGTH, SHARES=SHARES,
    )  # fmt: skip
    kernel("fact.move")[(sum(programs),)](
        of_regions, count, _seed_of(h), h.lr, h.decay, h.eps,
        P=_language(tensors.params), C=_language(tensors.compensation), **ways,
    )  # fmt: skip


def _seed_of(h: Hyperparameters) -> int:
    """The seed of a step, of which 32 bits count, as an int32: a kernel for larger ones would be another."""
    return (h.seed + 2**31) % 2**32 - 2**31


def _language(tensors: Sequence[torch.Tensor] | None = None) -> Any:
    """The dtype of a list of tensors in Triton's language, where it has the same name; None if there are none."""
    import triton.language as tl

    return getattr(tl, str(tensors[0].dtype).removeprefix("torch.")) if tensors else None


def _addresses(tensors: Sequence[torch.Tensor] | None, count: int) -> list[int]:
    """Where the elements of `count` tensors lie; zeros for None.

    Raises:
        RuntimeError: if a tensor with elements has no memory.
    """
    if tensors is None:
        return [0] * count
    found = list(map(torch.Tensor.data_ptr, tensors))
    if 0 in found:
        check_memory(next((i for i, at in enumerate(found) if not at and tensors[i].numel()), -1))
    return found


def _are_aligned(numbers: Sequence[int]) -> bool:
    """Whether all are multiples of what a thread moves at once."""
    return functools.reduce(or_, numbers, 0) % TOGETHER == 0


def _table(rows: Sequence[Sequence[int]], programs: Sequence[int], device: torch.device) -> torch.Tensor:
    """Rows with a number for each tensor, its first program, and then the tensor of each program: int64, on a device.

    It is the same one while its numbers are the same.

    Args:
        rows: the rows.
        programs: how many programs each tensor has.
        device: where it is read.
    """
    stream = None if device.type == "cpu" else torch.get_device_module(device).current_stream(device)
    return _sent(tuple(number for row in (*rows, programs) for number in row), len(programs), device, stream)


@functools.lru_cache(KEPT)
def _sent(numbers: tuple[int, ...], count: int, device: torch.device, stream: Any) -> torch.Tensor:
    """A table on the way to a device, where it is filled and read on the same stream.

    From pinned memory nobody waits for it, and torch frees that afterwards.
    """
    made = torch.frombuffer(array("q", numbers), dtype=torch.int64)
    programs = made[-count:]
    table = torch.cat([made[:-count], programs.cumsum(0) - programs, torch.repeat_interleave(programs)])
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)
