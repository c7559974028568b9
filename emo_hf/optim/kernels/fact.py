"""Runs the kernels of the Adafactor-type rule for matrices."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch

from emo_hf.optim.kernels.checks import (
    UnfitError,
    check_memory,
    check_numbers_of_elements,
    check_same_shapes,
    check_tensors,
)
from emo_hf.optim.kernels.launch import PLAINLY, Kept, layout_of, required_library
from emo_hf.optim.kernels.library import KernelHyperparameters, Layout, Library, integers
from emo_hf.optim.kernels.team import team_for
from emo_hf.optim.update import Hyperparameters

SPOILT = 1
"""What the kernel for a large matrix returns if a gradient is not finite."""

LARGE = 1 << 22
"""Elements from which on a matrix is worked on by all threads at once."""


def move_matrices(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    rows: list[torch.Tensor],
    columns: list[torch.Tensor],
    h: Hyperparameters,
    kept: Kept = PLAINLY,
) -> list[int]:
    """Move matrices by the kernels of `fact.c`.

    Large matrices are taken apart, so that all threads have a part of each; the others are shared out whole.

    Args:
        params: parameters with two or more dims, which are moved in place. A row is what has one index of the first.
        grads: their gradients, of the same shapes.
        rows: r of each, with an element for each row.
        columns: k of each, with an element for each column.
        h: the numbers of the step.
        kept: what belongs to parameters in fewer than 32 bits.

    Returns:
        The matrices, by their place in the list, that have been left as they were because a gradient is not finite.

    Raises:
        UnfitError: if a tensor is not plain and contiguous in main memory, or the tensors of a list are not of one
            dtype that the kernels know. Nothing has been moved then.
        RuntimeError: if anything else is not as said above, or there are no kernels; nothing has been moved either.
    """
    of_state = {} if kept.compensation is None else {"compensation": kept.compensation}
    check_tensors(parameter=params, gradient=grads, row_state=rows, column_state=columns, **of_state)
    if any(tensors[0].dtype is not torch.float32 for tensors in (rows, columns) if tensors):
        raise UnfitError("the sizes of rows and columns are not torch.float32: leave native=None")
    shapes = [param.shape for param in params]
    if any(len(shape) < 2 for shape in shapes):
        raise RuntimeError("a parameter with fewer than two dims has no rows and columns: emo_fact_vector moves it")
    check_same_shapes(params, gradient=grads, **of_state)
    elements = list(map(torch.Tensor.numel, params))
    heights = [shape[0] for shape in shapes]
    widths = [n // shape[0] if n else math.prod(shape[1:]) for n, shape in zip(elements, shapes, strict=True)]
    check_numbers_of_elements("row_state", rows, heights)
    check_numbers_of_elements("column_state", columns, widths)
    # Each of the smaller ones is one thread's, so that the last should be short. An empty one has no means.
    order = sorted(filter(elements.__getitem__, range(len(params))), key=elements.__getitem__, reverse=True)
    if not order:
        return []
    lists = [params, grads, rows, columns] + ([] if kept.compensation is None else [kept.compensation])
    addresses = [[tensors[i].data_ptr() for i in order] for tensors in lists]
    for of_one_kind in addresses:
        check_memory(order[of_one_kind.index(0)] if 0 in of_one_kind else -1)
    heights, widths = [heights[i] for i in order], [widths[i] for i in order]
    large = sum([elements[i] >= LARGE for i in order])
    call = _Call(required_library(), layout_of(params, grads, [], kept, h), KernelHyperparameters.of(h))
    spoilt = []
    for height, width, *matrix in zip(heights[:large], widths[:large], *(a[:large] for a in addresses), strict=True):
        spoilt.append(call.move_large(height, width, matrix))
    if large < len(order):
        spoilt += call.move_whole(heights[large:], widths[large:], [a[large:] for a in addresses])
    torch.autograd.graph.increment_version(params)
    return [i for i, is_spoilt in zip(order, spoilt, strict=True) if is_spoilt]


@dataclass(frozen=True, slots=True)
class _Call:
    library: Library
    layout: Layout
    numbers: KernelHyperparameters

    def move_large(self, rows: int, columns: int, addresses: list[int]) -> bool:
        """Move a matrix with all threads; True if a gradient is not finite."""
        team = team_for(rows * columns, self.library)
        sums = _floats(min(rows, self.library.blocks) * columns + rows)
        addresses = [*addresses, *[0] * (5 - len(addresses))]
        said = self.library.fact_large_matrix(
            team, rows, columns, *addresses, sums.data_ptr(), self.layout, self.numbers
        )
        check_memory(-1 if said == SPOILT else said)
        return bool(said == SPOILT)

    def move_whole(self, rows: list[int], columns: list[int], addresses: list[list[int]]) -> list[bool]:
        """Move matrices, each with one thread; says of each whether a gradient is not finite."""
        team = team_for(sum(map(operator.mul, rows, columns)), self.library)
        width = max(map(operator.add, rows, columns))
        scratch = _floats(team.threads * width)
        lists = [*map(integers, addresses), *[None] * (5 - len(addresses))]
        spoilt = integers([0] * len(rows))
        lacking = self.library.fact_matrices(
            team, len(rows), integers(rows), integers(columns), *lists, scratch.data_ptr(), width, spoilt,
            self.layout, self.numbers,
        )  # fmt: skip
        check_memory(lacking)
        return list(map(bool, spoilt))


def _floats(count: int) -> torch.Tensor:
    # What torch makes tensors of by default is the user's choice, and none of the kernels'.
    return torch.empty(count, dtype=torch.float32, device="cpu")
