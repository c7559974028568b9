"""EmoFact: the Adafactor-type update rule."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from operator import itemgetter
from typing import ClassVar

import torch

from emo_hf.optim.kernels.launch import KernelSize, Reference, address, crew, integers, kernel, pointers, where_it_fits
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.rules.fact_shards import first_sizes, move_matrices
from emo_hf.optim.rules.rule import Implementation, State, StepSize, column, on_own_elements, where
from emo_hf.optim.tensors.chunking import bounded, is_flat, piece_for

R = "row_rms"
K = "column_rms"
V = "exp_avg_sq"

LARGE = 1 << 22  # elements from which on a matrix is worked on by all threads at once
BLOCKS = 16  # in which kernels.c takes it apart


class EmoFact(EmoOptimizer):
    """EmoFact v3.1: gradients divided by factored row and column sizes, the step scaled by the emotion.

    For g with two or more dims, with means over all dims but the first, and over the first (dims kept):

        r̂ = mean(g², dims 1…) + ε      k̂ = mean(g², dim 0) + ε
        r ← β1·r + (1−β1)·√r̂           k ← β1·k + (1−β1)·√k̂
        u = g / (√(r·k) + ε)

    For g with at most one dim:

        v ← β1·v + (1−β2)·g²           u = g / (√v + ε)

    Then, for both:

        p ← p − lr·wd·p
        p ← p − lr·c·u

    The lightest of the family: the state of a matrix is one row and one column.

    Args:
        params: parameters, named parameters, or parameter groups (dicts with `params`, optionally `name` and any of
            the options below). Groups without parameters are left out.
        lr: learning rate; a scheduler may change it. The emotion multiplies it, and never writes it.
        betas: β1 decays the sizes of matrices and vectors, 1 − β2 is the gain for vectors; each in [0, 1).
        eps: added to the mean squares and to the denominator.
        weight_decay: decoupled weight decay, applied with the plain `lr`.
        use_shadow: keep a slow copy of the parameters and mix it in at sudden changes; one more tensor of state.
        maximize: climb instead of descend.
        foreach: True for the multi-tensor implementation, False against it, None to choose the best that works.
        fused: there is no fused implementation: None or False.
        compile: the same for our own kernel, which is the default for float32 in main memory.
        compensate: for bfloat16 and float16 parameters, keep what rounding takes from them; see `low_precision`.
        emo_sync: `global`, one emotion for all ranks of a distributed job; `local`, each rank its own; see `ranks`.
        emo_law: `v3.1`, or `robust` for losses around or below zero; see `laws`.

    Raises:
        ValueError: if an option is out of range or there are no parameters.

    Source: EmoFact v3.1 by muooon.
    """

    preference: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("compile",), "cuda": ("foreach",), "xpu": ("foreach",)}

    def new_state(self, param: torch.Tensor) -> State:
        if param.dim() < 2:
            return {V: torch.zeros_like(param, memory_format=torch.preserve_format)}
        return dict(zip((R, K), first_sizes(param), strict=True))


def _single_tensor(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    for p, g, state in zip(params, grads, states, strict=True):
        denominator = _vector_size(g, state, size) if g.dim() < 2 else _matrix_size(g, state, size)
        p.add_(p, alpha=-size.decay)
        p.addcdiv_(g, denominator.add_(size.eps), value=-size.step)


def _matrix_size(g: torch.Tensor, state: State, size: StepSize) -> torch.Tensor:
    """√(r·k), after r and k have taken in the gradient."""
    r, k = state[R], state[K]
    squared = g * g
    rows = squared.mean(dim=tuple(range(1, g.dim())), keepdim=True).add_(size.eps).sqrt_()
    columns = squared.mean(dim=0, keepdim=True).add_(size.eps).sqrt_()
    r.mul_(size.beta1).add_(rows, alpha=1 - size.beta1)
    k.mul_(size.beta1).add_(columns, alpha=1 - size.beta1)
    return torch.mul(r, k, out=squared).sqrt_()


def _vector_size(g: torch.Tensor, state: State, size: StepSize) -> torch.Tensor:
    """√v, after v has taken in the gradient."""
    v = state[V]
    v.mul_(size.beta1).addcmul_(g, g, value=1 - size.beta2)
    return v.sqrt()


def _row_blocks(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    """Matrices, some rows at a time: what is temporary stays in the caches, and is small."""
    for p, g, state in zip(params, grads, states, strict=True):
        r, k = state[R].view(-1, 1), state[K].view(1, -1)
        height = max(piece_for(p) // k.numel(), 1)
        blocks = list(
            zip(p.view(len(r), -1).split(height), g.view(len(r), -1).split(height), r.split(height), strict=True)
        )
        sums = torch.zeros_like(k)
        for _, g_rows, r_rows in blocks:
            squared = g_rows * g_rows
            means = squared.mean(dim=1, keepdim=True).add_(size.eps).sqrt_()
            r_rows.mul_(size.beta1).add_(means, alpha=1 - size.beta1)
            sums.add_(squared.sum(dim=0, keepdim=True))
        k.mul_(size.beta1).add_(sums.div_(len(r)).add_(size.eps).sqrt_(), alpha=1 - size.beta1)
        for p_rows, g_rows, r_rows in blocks:
            p_rows.add_(p_rows, alpha=-size.decay)
            p_rows.addcdiv_(g_rows, torch.mul(r_rows, k).sqrt_().add_(size.eps), value=-size.step)


def _has_row_blocks(param: torch.Tensor, *others: torch.Tensor) -> bool:
    return param.dim() > 1 and param.numel() > piece_for(param) and is_flat(param, *others)


def _multi_tensor(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    squared = list(torch._foreach_mul(grads, grads))
    matrices = [i for i, g in enumerate(grads) if g.dim() > 1]
    if matrices:
        rows = [squared[i].mean(dim=tuple(range(1, squared[i].dim())), keepdim=True) for i in matrices]
        columns = [squared[i].mean(dim=0, keepdim=True) for i in matrices]
        for key, means in ((R, rows), (K, columns)):
            torch._foreach_add_(means, size.eps)
            torch._foreach_sqrt_(means)
            sizes = column([states[i] for i in matrices], key)
            torch._foreach_mul_(sizes, size.beta1)
            torch._foreach_add_(sizes, means, alpha=1 - size.beta1)
        for i in matrices:
            torch.mul(states[i][R], states[i][K], out=squared[i])
    vectors = [i for i, g in enumerate(grads) if g.dim() < 2]
    if vectors:
        v, gains = column([states[i] for i in vectors], V), [squared[i] for i in vectors]
        torch._foreach_mul_(v, size.beta1)
        torch._foreach_add_(v, gains, alpha=1 - size.beta2)
        torch._foreach_copy_(gains, v)
    torch._foreach_sqrt_(squared)
    torch._foreach_add_(squared, size.eps)
    torch._foreach_add_(params, params, alpha=-size.decay)
    torch._foreach_addcdiv_(params, grads, squared, -size.step)


def _compiled(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    # Large matrices are taken apart, so that all threads have a part of them; the others are shared out whole.
    sizes = ctypes.byref(KernelSize.of(size))
    whole = []
    for p, g, state in zip(params, grads, states, strict=True):
        elements = p.numel()
        if R not in state:
            whole.append((elements, 0, elements, p, g, state[V], state[V]))  # 0 rows tell that it is a vector
        elif elements < LARGE:
            whole.append((elements, p.size(0), elements // p.size(0), p, g, state[R], state[K]))
        else:
            _compiled_matrix(p, g, state[R], state[K], sizes)
    if whole:
        whole.sort(key=itemgetter(0), reverse=True)  # each is one thread's, so that the last should be short
        _, rows, columns, *tensors = zip(*whole, strict=True)
        _compiled_whole(rows, columns, tensors, sizes)
    torch.autograd.graph.increment_version(params)


def _compiled_whole(
    rows: Sequence[int], columns: Sequence[int], tensors: Sequence[Sequence[torch.Tensor]], sizes: Reference
) -> None:
    widest = max(n if m else 0 for n, m in zip(columns, rows, strict=True))
    workers = crew(sum(tensor.numel() for tensor in tensors[0]))
    scratch = torch.empty(workers.threads, widest)
    counts = (ctypes.byref(workers), ctypes.c_int64(len(rows)))
    lists = [integers(rows), integers(columns), *map(pointers, tensors)]
    kernel("emo_fact")(*counts, *lists, address(scratch), ctypes.c_int64(widest), sizes)


def _compiled_matrix(p: torch.Tensor, g: torch.Tensor, r: torch.Tensor, k: torch.Tensor, sizes: Reference) -> None:
    columns = p.numel() // p.shape[0]
    sums = torch.empty(BLOCKS, columns)
    counts = map(ctypes.c_int64, (p.shape[0], columns))
    kernel("emo_fact_large")(ctypes.byref(crew(p.numel())), *counts, *map(address, (p, g, r, k, sums)), sizes)


def _matrices_on_shards(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize
) -> None:
    move_matrices(params, grads, column(states, R), column(states, K), size)


def _is_matrix(param: torch.Tensor, *_: torch.Tensor) -> bool:
    return param.dim() > 1


def _large_in_row_blocks(update: Implementation) -> Implementation:
    return where(_has_row_blocks, _row_blocks, otherwise=update)


EmoFact.implementations = {
    "single": _large_in_row_blocks(_single_tensor),
    "foreach": _large_in_row_blocks(bounded(_multi_tensor, elementwise=False)),
    "compile": where_it_fits(_compiled, otherwise=_large_in_row_blocks(_single_tensor)),
}
EmoFact.sharded = where(_is_matrix, _matrices_on_shards, otherwise=on_own_elements(_single_tensor))
