"""The Adafactor-type rules of EmoFact v3.1 and v3.0."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch

from emo_hf.optim.kernels.fact import move_matrices as move_matrices_natively
from emo_hf.optim.kernels.gpu.launch import matrices as matrices_on_gpu
from emo_hf.optim.kernels.tensors import KernelTensors, where_it_fits
from emo_hf.optim.left_out import leaving_out
from emo_hf.optim.pieces import bounded, piece_for
from emo_hf.optim.precision.low import in_float32_if_kept_in_less
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.rules.rule import Rule, each_way, whole_and_finite, zeros
from emo_hf.optim.sharding import is_sharded, local_elements, splits_rows, sum_over_shards
from emo_hf.optim.state_keys import COLUMN_RMS, EXP_AVG, EXP_AVG_SQ, ROW_RMS
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, State, is_flat, one_by_one, where


def is_matrix(param: torch.Tensor, *_: torch.Tensor) -> bool:
    """Whether a parameter has rows and columns."""
    return param.dim() > 1


def _dims_of_a_row(g: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(1, g.dim()))


def _matrices(bucket: Bucket, h: Hyperparameters) -> None:
    """Matrices, or this rank's shards of them: the means are those of the whole.

    A row that lies on one rank is averaged there, and so is a column. What several ranks have a part of is summed over
    them: under FSDP2, which deals out rows, the sums of the columns. One collective carries those of all matrices.
    """
    params = bucket.params
    p = list(map(local_elements, params))
    g = [local_elements(grad, like=param) for param, grad, _ in bucket]
    squared = list(torch._foreach_mul(g, g))
    rows = [s.sum(dim=_dims_of_a_row(s), keepdim=True) for s in squared]
    columns = [s.sum(dim=0, keepdim=True) for s in squared]
    by_rows, by_columns = (lambda place, wanted=wanted: splits_rows(place) is wanted for wanted in (True, False))
    sum_over_shards(
        [(param, sums, by_columns) for param, sums in zip(params, rows, strict=True)]
        + [(param, sums, by_rows) for param, sums in zip(params, columns, strict=True)]
    )
    widths, heights = [math.prod(param.shape[1:]) for param in params], [param.shape[0] for param in params]
    r, k = (list(map(local_elements, bucket.state(key))) for key in (ROW_RMS, COLUMN_RMS))
    for sizes, means, counts in ((r, rows, widths), (k, columns, heights)):
        torch._foreach_div_(means, counts)
        torch._foreach_add_(means, h.eps)
        torch._foreach_sqrt_(means)
        torch._foreach_mul_(sizes, h.beta1)
        torch._foreach_add_(sizes, means, alpha=1 - h.beta1)
    for s, of_rows, of_columns in zip(squared, r, k, strict=True):
        torch.mul(of_rows, of_columns, out=s)
    torch._foreach_sqrt_(squared)
    torch._foreach_add_(squared, h.eps)
    torch._foreach_add_(p, p, alpha=-h.decay)
    torch._foreach_addcdiv_(p, g, squared, -h.lr)


def _row_blocks(bucket: Bucket, h: Hyperparameters) -> None:
    """Large matrices, some rows at a time: what is temporary stays in the caches and does not grow with them."""
    for p, g, state in bucket:
        r, k = state[ROW_RMS].view(-1, 1), state[COLUMN_RMS].view(1, -1)
        height = max(piece_for(p) // k.numel(), 1)
        shape = len(r), k.numel()
        blocks = list(zip(*(whole.view(shape).split(height) for whole in (p, g)), r.split(height), strict=True))
        sums = torch.zeros_like(k)
        for _, g_rows, r_rows in blocks:
            squared = g_rows * g_rows
            r_rows.mul_(h.beta1)
            r_rows.add_(squared.mean(dim=1, keepdim=True).add_(h.eps).sqrt_(), alpha=1 - h.beta1)
            sums.add_(squared.sum(dim=0, keepdim=True))
        k.mul_(h.beta1).add_(sums.div_(len(r)).add_(h.eps).sqrt_(), alpha=1 - h.beta1)
        for p_rows, g_rows, r_rows in blocks:
            p_rows.add_(p_rows, alpha=-h.decay)
            p_rows.addcdiv_(g_rows, torch.mul(r_rows, k).sqrt_().add_(h.eps), value=-h.lr)


def _has_row_blocks(param: torch.Tensor, *others: torch.Tensor) -> bool:
    return param.numel() > piece_for(param) and is_flat(param, *others)


def _matrices_of_finite(bucket: Bucket, h: Hyperparameters) -> None:
    """Matrices without the elements whose gradient is not finite: the means are over the others of a row or column."""
    for p, g, state in bucket:
        finite = g.isfinite()
        kept = torch.where(finite, g, torch.zeros_like(g))
        squared = kept * kept
        for key, dims in ((ROW_RMS, _dims_of_a_row(g)), (COLUMN_RMS, (0,))):
            count = finite.sum(dim=dims, keepdim=True)
            means = (squared.sum(dim=dims, keepdim=True) / count.clamp(min=1)).add_(h.eps).sqrt_()
            size = state[key]
            size.copy_(torch.where(count > 0, size * h.beta1 + means * (1 - h.beta1), size))
        moved = p - p * h.decay
        moved.addcdiv_(kept, (state[ROW_RMS] * state[COLUMN_RMS]).sqrt_().add_(h.eps), value=-h.lr)
        p.copy_(torch.where(finite, moved, p))
        if h.left_out is not None:
            h.left_out.add(g.numel() - finite.sum())


def _first_sizes(param: torch.Tensor) -> State:
    """r and k of a matrix before its first step: zeros, laid out as its rows and its columns are."""
    rows, columns = [1] * (param.dim() - 1), [*param.shape[1:]]
    if not is_sharded(param):
        return {ROW_RMS: param.new_zeros([param.shape[0], *rows]), COLUMN_RMS: param.new_zeros([1, *columns])}
    own = local_elements(param)
    return {
        ROW_RMS: _dealt(param, own.new_zeros([own.shape[0], *rows]), [param.shape[0], *rows], by_rows=True),
        COLUMN_RMS: _dealt(param, own.new_zeros([1, *own.shape[1:]]), [1, *columns], by_rows=False),
    }


def _dealt(param: torch.Tensor, own: torch.Tensor, shape: list[int], *, by_rows: bool) -> torch.Tensor:
    """`own` as this rank's part of a tensor that is split where the rows (or else the columns) of `param` are."""
    from torch.distributed.tensor import DTensor, Replicate

    matrix = cast(DTensor, param)
    placements: list[Any] = [at if splits_rows(at) is by_rows else Replicate() for at in matrix.placements]
    size, stride = torch.Size(shape), torch.empty(shape, device="meta").stride()
    return DTensor.from_local(own, matrix.device_mesh, placements, run_check=False, shape=size, stride=stride)


def _vectors(bucket: Bucket, h: Hyperparameters) -> None:
    p, g, v = bucket.params, bucket.grads, bucket.state(EXP_AVG_SQ)
    torch._foreach_mul_(v, h.beta1)
    torch._foreach_addcmul_(v, g, g, 1 - h.beta2)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_add_(denominator, h.eps)
    torch._foreach_add_(p, p, alpha=-h.decay)
    torch._foreach_addcdiv_(p, g, denominator, -h.lr)


def _native_matrices(bucket: Bucket, h: Hyperparameters) -> None:
    for i in move_matrices_natively(KernelTensors.of(bucket, [ROW_RMS, COLUMN_RMS]), h):
        in_float32_if_kept_in_less(_matrices_of_finite)(bucket.some([i]), h)


_SINGLE = where(_has_row_blocks, _row_blocks, otherwise=one_by_one(_matrices))
_IN_TORCH = in_float32_if_kept_in_less(leaving_out(_SINGLE, _matrices_of_finite))

MATRICES: dict[str, Implementation] = {
    "single": _SINGLE,
    "foreach": where(_has_row_blocks, _row_blocks, otherwise=bounded(_matrices, elementwise=False)),
    "native": where_it_fits(_native_matrices, otherwise=_IN_TORCH),
    "triton": matrices_on_gpu(otherwise=_IN_TORCH),
    "sharded": _matrices,
    "finite": _matrices_of_finite,
}


def _with_vectors(vectors: dict[str, Implementation]) -> dict[str, Implementation]:
    """Implementations for matrices and vectors together; those for vectors are of an elementwise rule."""
    vectors = whole_and_finite(vectors)
    return {name: where(is_matrix, move, otherwise=vectors[name]) for name, move in MATRICES.items()}


class Fact(Rule):
    """Gradients divided by the sizes of their rows and columns.

    For g with two or more dims, with means over all dims but the first, and over the first (dims kept):

        r̂ = mean(g², dims 1…) + ε      k̂ = mean(g², dim 0) + ε
        r ← β1·r + (1−β1)·√r̂           k ← β1·k + (1−β1)·√k̂
        u = g / (√(r·k) + ε)

    For g with at most one dim:

        v ← β1·v + (1−β2)·g²           u = g / (√v + ε)

    Then, for both:

        p ← p − decay·p
        p ← p − lr·u

    The state of a matrix is one row and one column.
    """

    implementations = _with_vectors(each_way("fact_vector", [EXP_AVG_SQ], _vectors))
    elementwise = False
    float32_state = frozenset({ROW_RMS, COLUMN_RMS})
    vector_state: ClassVar[tuple[str, ...]] = (EXP_AVG_SQ,)

    def new_state(self, param: torch.Tensor) -> State:
        return _first_sizes(param) if is_matrix(param) else zeros(param, *self.vector_state)


class FactAdamVectors(Fact):
    """Fact of v3.0: matrices as Fact moves them, vectors as Adam does. For g with at most one dim:

    m ← β1·m + (1−β1)·g            v ← β2·v + (1−β2)·g²           u = m / (√v + ε)
    """

    implementations = _with_vectors(Navi.implementations)
    vector_state = (EXP_AVG, EXP_AVG_SQ)
