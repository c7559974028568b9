"""Runs the kernels of the Adafactor-type rule for matrices."""

from __future__ import annotations

import math
import operator

import torch

from emo_hf.optim.kernels.checks import check_memory, check_numbers_of_elements, check_same_shapes, check_tensors
from emo_hf.optim.kernels.launch import integers, required_library
from emo_hf.optim.kernels.library import KernelHyperparameters, Library
from emo_hf.optim.kernels.team import team_for
from emo_hf.optim.update import Hyperparameters

LARGE = 1 << 22
"""Elements from which on a matrix is worked on by all threads at once."""


def move_matrices(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    rows: list[torch.Tensor],
    columns: list[torch.Tensor],
    h: Hyperparameters,
) -> None:
    """Move matrices by the kernels of `fact.c`.

    Large matrices are taken apart, so that all threads have a part of each; the others are shared out whole.

    Args:
        params: parameters with two or more dims, which are moved in place. A row is what has one index of the first.
        grads: their gradients, of the same shapes.
        rows: r of each, with an element for each row.
        columns: k of each, with an element for each column.
        h: the numbers of the step.

    Raises:
        UnfitError: if a tensor is not plain contiguous float32 in main memory. Nothing has been moved then.
        RuntimeError: if anything else is not as said above, or there are no kernels; nothing has been moved either.
    """
    check_tensors(parameter=params, gradient=grads, row_state=rows, column_state=columns)
    shapes = [param.shape for param in params]
    if any(len(shape) < 2 for shape in shapes):
        raise RuntimeError("a parameter with fewer than two dims has no rows and columns: emo_fact_vector moves it")
    check_same_shapes(params, gradient=grads)
    elements = list(map(torch.Tensor.numel, params))
    heights = [shape[0] for shape in shapes]
    widths = [n // shape[0] if n else math.prod(shape[1:]) for n, shape in zip(elements, shapes, strict=True)]
    check_numbers_of_elements("row_state", rows, heights)
    check_numbers_of_elements("column_state", columns, widths)
    # Each of the smaller ones is one thread's, so that the last should be short. An empty one has no means.
    order = sorted(filter(elements.__getitem__, range(len(params))), key=elements.__getitem__, reverse=True)
    if not order:
        return
    addresses = [[tensors[i].data_ptr() for i in order] for tensors in (params, grads, rows, columns)]
    for of_one_kind in addresses:
        check_memory(order[of_one_kind.index(0)] if 0 in of_one_kind else -1)
    heights, widths = [heights[i] for i in order], [widths[i] for i in order]
    large = sum([elements[i] >= LARGE for i in order])
    library, numbers = required_library(), KernelHyperparameters.of(h)
    for height, width, *matrix in zip(heights[:large], widths[:large], *(a[:large] for a in addresses), strict=True):
        _move_large(library, height, width, matrix, numbers)
    if large < len(order):
        _move_whole(library, heights[large:], widths[large:], [a[large:] for a in addresses], numbers)
    torch.autograd.graph.increment_version(params)


def _move_large(
    library: Library, rows: int, columns: int, addresses: list[int], numbers: KernelHyperparameters
) -> None:
    team = team_for(rows * columns, library)
    sums = _floats(min(rows, library.blocks), columns)
    check_memory(library.fact_large_matrix(team, rows, columns, *addresses, sums.data_ptr(), numbers))


def _move_whole(
    library: Library, rows: list[int], columns: list[int], addresses: list[list[int]], numbers: KernelHyperparameters
) -> None:
    team = team_for(sum(map(operator.mul, rows, columns)), library)
    widest = max(columns)
    scratch = _floats(team.threads, widest)
    lists = map(integers, (rows, columns, *addresses))
    check_memory(library.fact_matrices(team, len(rows), *lists, scratch.data_ptr(), widest, numbers))


def _floats(rows: int, columns: int) -> torch.Tensor:
    # What torch makes tensors of by default is the user's choice, and none of the kernels'.
    return torch.empty(rows, columns, dtype=torch.float32, device="cpu")
