"""EmoFact's rule for matrices of which each rank holds a shard: the means are those of the whole matrix.

A row that lies on one rank is averaged there, and so is a column. What several ranks have a part of is summed over
them: under FSDP2, which deals out rows, the sums of the columns. One collective carries those of all matrices.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist

from emo_hf.optim.rules.rule import StepSize
from emo_hf.optim.tensors.dtensor import is_sharded, own_elements


def first_sizes(param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """r and k of a matrix before its first step: zeros, laid out as its rows and its columns are."""
    own = own_elements(param)
    r, k = own.new_zeros([own.shape[0]] + [1] * (own.dim() - 1)), own.new_zeros([1, *own.shape[1:]])
    if not is_sharded(param):
        return r, k
    rows = [param.shape[0]] + [1] * (param.dim() - 1)
    columns = [1, *param.shape[1:]]
    return _like(param, r, rows, by_rows=True), _like(param, k, columns, by_rows=False)


def _like(param: torch.Tensor, own: torch.Tensor, shape: list[int], *, by_rows: bool) -> torch.Tensor:
    """`own` as this rank's part of a tensor that is split where the rows (or else the columns) of `param` are."""
    from torch.distributed.tensor import DTensor, Replicate

    matrix = cast(DTensor, param)
    placements = [placement if _splits_rows(placement) is by_rows else Replicate() for placement in matrix.placements]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        own, matrix.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def _splits_rows(placement: Any) -> bool | None:
    """True if a placement deals out rows, False if columns, None if neither."""
    return placement.dim == 0 if hasattr(placement, "dim") else None


def move_matrices(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    rows: list[torch.Tensor],
    columns: list[torch.Tensor],
    size: StepSize,
) -> None:
    """One step of EmoFact for matrices; plain ones are matrices on one rank.

    Args:
        params, grads: the matrices and their gradients.
        rows, columns: their r and k, as `first_sizes` made them.
        size: the sizes of the step.
    """
    own_grads = [own_elements(grad, like=param) for grad, param in zip(grads, params, strict=True)]
    squares = [_sums_of_squares(g) for g in own_grads]
    _sum_over_shards(params, squares)
    for param, g, row, column, (row_sums, column_sums) in zip(params, own_grads, rows, columns, squares, strict=True):
        p, r, k = map(own_elements, (param, row, column))
        height = param.shape[0]
        width = math.prod(param.shape[1:])
        r.mul_(size.beta1).add_(row_sums.div_(width).add_(size.eps).sqrt_(), alpha=1 - size.beta1)
        k.mul_(size.beta1).add_(column_sums.div_(height).add_(size.eps).sqrt_(), alpha=1 - size.beta1)
        p.add_(p, alpha=-size.decay)
        p.addcdiv_(g, torch.mul(r, k).sqrt_().add_(size.eps), value=-size.step)


def _sums_of_squares(g: torch.Tensor) -> list[torch.Tensor]:
    squared = g * g
    return [squared.sum(dim=tuple(range(1, g.dim())), keepdim=True), squared.sum(dim=0, keepdim=True)]


def _sum_over_shards(params: list[torch.Tensor], squares: list[list[torch.Tensor]]) -> None:
    """Complete the sums of rows that are split between ranks, and of columns that are."""
    to_sum: dict[tuple[Any, int], list[torch.Tensor]] = {}  # (mesh, its dimension) → sums; the same on every rank
    for param, (row_sums, column_sums) in zip(params, squares, strict=True):
        if not is_sharded(param):
            continue
        matrix = cast(Any, param)
        for dimension, placement in enumerate(matrix.placements):
            by_rows = _splits_rows(placement)
            if by_rows is not None:
                sums = column_sums if by_rows else row_sums
                to_sum.setdefault((matrix.device_mesh, dimension), []).append(sums)
    for (mesh, dimension), tensors in to_sum.items():
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together, group=mesh.get_group(dimension))
        for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
