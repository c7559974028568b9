"""The Adafactor-type rules of EmoFact v3.1 and v3.0."""

from __future__ import annotations

import torch

from emo_hf.optim.kernels.fact import move_matrices as move_matrices_natively
from emo_hf.optim.kernels.gpu.elementwise import elementwise as on_gpu
from emo_hf.optim.kernels.gpu.fact import matrices as matrices_on_gpu
from emo_hf.optim.kernels.launch import Kept, elementwise, where_it_fits
from emo_hf.optim.rules import fact_on_shards
from emo_hf.optim.rules.navi import Navi, adam_state
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.state_keys import COLUMN_RMS, EXP_AVG_SQ, ROW_RMS
from emo_hf.optim.tensors.chunking import bounded, is_flat, piece_for
from emo_hf.optim.tensors.dispatch import on_own_elements, state_tensors, where
from emo_hf.optim.tensors.left_out import leaving_out, masked
from emo_hf.optim.tensors.low_precision import in_float32_if_kept_in_less
from emo_hf.optim.update import Hyperparameters, Implementation, State


def _matrices(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
    for p, g, state in zip(params, grads, states, strict=True):
        r, k = state[ROW_RMS], state[COLUMN_RMS]
        squared = g * g
        rows = squared.mean(dim=tuple(range(1, g.dim())), keepdim=True).add_(h.eps).sqrt_()
        columns = squared.mean(dim=0, keepdim=True).add_(h.eps).sqrt_()
        r.mul_(h.beta1).add_(rows, alpha=1 - h.beta1)
        k.mul_(h.beta1).add_(columns, alpha=1 - h.beta1)
        p.add_(p, alpha=-h.decay)
        p.addcdiv_(g, torch.mul(r, k, out=squared).sqrt_().add_(h.eps), value=-h.lr)


def _matrices_of_finite(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    """Matrices without the elements whose gradient is not finite: the means are over the others of a row or column."""
    for p, g, state in zip(params, grads, states, strict=True):
        finite = g.isfinite()
        kept = torch.where(finite, g, torch.zeros_like(g))
        squared = kept * kept
        for key, dims in ((ROW_RMS, tuple(range(1, g.dim()))), (COLUMN_RMS, (0,))):
            count = finite.sum(dim=dims, keepdim=True)
            means = (squared.sum(dim=dims, keepdim=True) / count.clamp(min=1)).add_(h.eps).sqrt_()
            size = state[key]
            size.copy_(torch.where(count > 0, size * h.beta1 + means * (1 - h.beta1), size))
        moved = p - p * h.decay
        moved.addcdiv_(kept, (state[ROW_RMS] * state[COLUMN_RMS]).sqrt_().add_(h.eps), value=-h.lr)
        p.copy_(torch.where(finite, moved, p))
        if h.left_out is not None:
            h.left_out.add(g.numel() - finite.sum())


def _row_blocks(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    """Matrices, some rows at a time: what is temporary stays in the caches, and is small."""
    for p, g, state in zip(params, grads, states, strict=True):
        r, k = state[ROW_RMS].view(-1, 1), state[COLUMN_RMS].view(1, -1)
        height = max(piece_for(p) // k.numel(), 1)
        blocks = list(
            zip(p.view(len(r), -1).split(height), g.view(len(r), -1).split(height), r.split(height), strict=True)
        )
        sums = torch.zeros_like(k)
        for _, g_rows, r_rows in blocks:
            squared = g_rows * g_rows
            means = squared.mean(dim=1, keepdim=True).add_(h.eps).sqrt_()
            r_rows.mul_(h.beta1).add_(means, alpha=1 - h.beta1)
            sums.add_(squared.sum(dim=0, keepdim=True))
        k.mul_(h.beta1).add_(sums.div_(len(r)).add_(h.eps).sqrt_(), alpha=1 - h.beta1)
        for p_rows, g_rows, r_rows in blocks:
            p_rows.add_(p_rows, alpha=-h.decay)
            p_rows.addcdiv_(g_rows, torch.mul(r_rows, k).sqrt_().add_(h.eps), value=-h.lr)


def _multi_matrices(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    squared = list(torch._foreach_mul(grads, grads))
    rows = [s.mean(dim=tuple(range(1, s.dim())), keepdim=True) for s in squared]
    columns = [s.mean(dim=0, keepdim=True) for s in squared]
    for key, means in ((ROW_RMS, rows), (COLUMN_RMS, columns)):
        torch._foreach_add_(means, h.eps)
        torch._foreach_sqrt_(means)
        sizes = state_tensors(states, key)
        torch._foreach_mul_(sizes, h.beta1)
        torch._foreach_add_(sizes, means, alpha=1 - h.beta1)
    for s, state in zip(squared, states, strict=True):
        torch.mul(state[ROW_RMS], state[COLUMN_RMS], out=s)
    torch._foreach_sqrt_(squared)
    torch._foreach_add_(squared, h.eps)
    torch._foreach_add_(params, params, alpha=-h.decay)
    torch._foreach_addcdiv_(params, grads, squared, -h.lr)


def _vectors(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
    for p, g, state in zip(params, grads, states, strict=True):
        v = state[EXP_AVG_SQ]
        v.mul_(h.beta1).addcmul_(g, g, value=1 - h.beta2)
        p.add_(p, alpha=-h.decay)
        p.addcdiv_(g, v.sqrt().add_(h.eps), value=-h.lr)


def _multi_vectors(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    v = state_tensors(states, EXP_AVG_SQ)
    torch._foreach_mul_(v, h.beta1)
    torch._foreach_addcmul_(v, grads, grads, 1 - h.beta2)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_add_(denominator, h.eps)
    torch._foreach_add_(params, params, alpha=-h.decay)
    torch._foreach_addcdiv_(params, grads, denominator, -h.lr)


def _native_matrices(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    rows, columns = state_tensors(states, ROW_RMS), state_tensors(states, COLUMN_RMS)
    for i in move_matrices_natively(params, grads, rows, columns, h, Kept.of(states)):
        in_float32_if_kept_in_less(_matrices_of_finite)([params[i]], [grads[i]], [states[i]], h)


def _matrices_on_shards(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    fact_on_shards.move_matrices(params, grads, state_tensors(states, ROW_RMS), state_tensors(states, COLUMN_RMS), h)


def is_matrix(param: torch.Tensor, *_: torch.Tensor) -> bool:
    """Whether a parameter has rows and columns."""
    return param.dim() > 1


def _has_row_blocks(param: torch.Tensor, *others: torch.Tensor) -> bool:
    return param.numel() > piece_for(param) and is_flat(param, *others)


_SINGLE = where(_has_row_blocks, _row_blocks, otherwise=_matrices)

MATRICES: dict[str, Implementation] = {
    "single": _SINGLE,
    "foreach": where(_has_row_blocks, _row_blocks, otherwise=bounded(_multi_matrices, elementwise=False)),
    "native": where_it_fits(
        _native_matrices, otherwise=in_float32_if_kept_in_less(leaving_out(_SINGLE, _matrices_of_finite))
    ),
    "triton": matrices_on_gpu(
        otherwise=in_float32_if_kept_in_less(leaving_out(_SINGLE, _matrices_of_finite)),
    ),
    "sharded": _matrices_on_shards,
    "finite": _matrices_of_finite,
}
VECTORS: dict[str, Implementation] = {
    "single": _vectors,
    "foreach": bounded(_multi_vectors),
    "native": elementwise("emo_fact_vector", [EXP_AVG_SQ], otherwise=_vectors),
    "triton": on_gpu("fact_vector", [EXP_AVG_SQ], otherwise=_vectors),
    "sharded": on_own_elements(_vectors),
    "finite": masked(_vectors),
}
ADAM_VECTORS: dict[str, Implementation] = {
    **Navi.implementations,
    "sharded": on_own_elements(Navi.implementations["single"]),
    "finite": masked(Navi.implementations["single"]),
}


def _by_dims(matrices: dict[str, Implementation], vectors: dict[str, Implementation]) -> dict[str, Implementation]:
    return {name: where(is_matrix, move, otherwise=vectors[name]) for name, move in matrices.items()}


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

    implementations = _by_dims(MATRICES, VECTORS)
    preference = {"cpu": ("native",), "cuda": ("triton", "foreach"), "xpu": ("triton", "foreach")}
    elementwise = False
    float32_state = frozenset({ROW_RMS, COLUMN_RMS})

    def new_state(self, param: torch.Tensor) -> State:
        if param.dim() < 2:
            return self.new_vector_state(param)
        return dict(zip((ROW_RMS, COLUMN_RMS), fact_on_shards.first_sizes(param), strict=True))

    def new_vector_state(self, param: torch.Tensor) -> State:
        """The state of a parameter of at most one dim."""
        return {EXP_AVG_SQ: torch.zeros_like(param, memory_format=torch.preserve_format)}


class FactAdamVectors(Fact):
    """Gradients divided by the sizes of their rows and columns; vectors as Adam moves them.

    For g with two or more dims:

        r̂ = mean(g², dims 1…) + ε      k̂ = mean(g², dim 0) + ε
        r ← β1·r + (1−β1)·√r̂           k ← β1·k + (1−β1)·√k̂
        u = g / (√(r·k) + ε)

    For g with at most one dim:

        m ← β1·m + (1−β1)·g            v ← β2·v + (1−β2)·g²           u = m / (√v + ε)

    Then, for both:

        p ← p − decay·p
        p ← p − lr·u
    """

    implementations = _by_dims(MATRICES, ADAM_VECTORS)

    def new_vector_state(self, param: torch.Tensor) -> State:
        return adam_state(param)
