"""Fact's rule for matrices of which each rank holds a shard: the means are those of the whole matrix.

A row that lies on one rank is averaged there, and so is a column. What several ranks have a part of is summed over
them: under FSDP2, which deals out rows, the sums of the columns. One collective carries those of all matrices.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from emo_hf.optim.tensors.dtensor import is_sharded, own_elements, splits_rows, sum_over_shards
from emo_hf.optim.update import Hyperparameters


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
    placements = [placement if splits_rows(placement) is by_rows else Replicate() for placement in matrix.placements]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        own, matrix.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def move_matrices(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    rows: list[torch.Tensor],
    columns: list[torch.Tensor],
    h: Hyperparameters,
) -> None:
    """One step of Fact for matrices; plain ones are matrices on one rank.

    Args:
        params, grads: the matrices and their gradients.
        rows, columns: their r and k, as `first_sizes` made them.
        h: the numbers of the step.
    """
    own_grads = [own_elements(grad, like=param) for grad, param in zip(grads, params, strict=True)]
    row_sums, column_sums = zip(*map(_sums_of_squares, own_grads), strict=True)
    sum_over_shards(
        [(param, sums, _splits_columns) for param, sums in zip(params, row_sums, strict=True)]
        + [(param, sums, _splits_rows) for param, sums in zip(params, column_sums, strict=True)]
    )
    for param, g, row, column, of_rows, of_columns in zip(
        params, own_grads, rows, columns, row_sums, column_sums, strict=True
    ):
        p, r, k = map(own_elements, (param, row, column))
        height = param.shape[0]
        width = math.prod(param.shape[1:])
        r.mul_(h.beta1).add_(of_rows.div_(width).add_(h.eps).sqrt_(), alpha=1 - h.beta1)
        k.mul_(h.beta1).add_(of_columns.div_(height).add_(h.eps).sqrt_(), alpha=1 - h.beta1)
        p.add_(p, alpha=-h.decay)
        p.addcdiv_(g, torch.mul(r, k).sqrt_().add_(h.eps), value=-h.lr)


def _sums_of_squares(g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    squared = g * g
    return squared.sum(dim=tuple(range(1, g.dim())), keepdim=True), squared.sum(dim=0, keepdim=True)


def _splits_rows(placement: Any) -> bool:
    return splits_rows(placement) is True


def _splits_columns(placement: Any) -> bool:
    return splits_rows(placement) is False
