"""The rule of EmoZeal."""

from __future__ import annotations

from dataclasses import replace

import torch

from emo_hf.optim.kernels.launch import run_elementwise, where_it_fits
from emo_hf.optim.rules.fact import FactAdamVectors, is_matrix
from emo_hf.optim.tensors.chunking import cut, piece_for
from emo_hf.optim.tensors.dispatch import where
from emo_hf.optim.tensors.dtensor import own_elements, whole_norms
from emo_hf.optim.tensors.left_out import LeftOut, masked
from emo_hf.optim.update import Hyperparameters, Implementation, State

LOUD = 0.6  # |σ| above: an extra step by the sign
FELT = 0.1  # |σ| above: an extra step by the size


def _extra_step(
    params: list[torch.Tensor], grads: list[torch.Tensor], norms: list[torch.Tensor], h: Hyperparameters
) -> None:
    for p, g, norm in zip(params, grads, norms, strict=True):
        for p_piece, g_piece, _ in zip(*cut([p], [g], [{}], piece_for(p)), strict=True):
            if abs(h.scalar) > LOUD:
                p_piece.add_(g_piece.sign(), alpha=-h.lr)
            else:
                b = g_piece * (1 - h.beta1)
                p_piece.sub_(b.div_(b.abs().add_(1)).mul_(norm + h.eps).mul_(h.lr))


def _extra(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
    own_params = [own_elements(param) for param in params]
    own_grads = [own_elements(grad, like=param) for grad, param in zip(grads, params, strict=True)]
    _extra_step(own_params, own_grads, whole_norms(params, own_grads, 2), h)


def _uncounted(h: Hyperparameters) -> LeftOut | None:
    """Leaves out what is to be left out, which the step of Fact that follows counts."""
    return None if h.left_out is None else LeftOut()


def _extra_of_finite(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    masked(_extra)(params, grads, [{}] * len(params), replace(h, left_out=_uncounted(h)))


def _native_extra(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    scales = None if abs(h.scalar) > LOUD else torch.stack(whole_norms(params, grads, 2)) + h.eps
    if scales is not None and h.left_out is not None and not bool(scales.isfinite().all()):
        return _extra_of_finite(params, grads, states, h)
    return run_elementwise("emo_zeal", params, grads, [], replace(h, left_out=_uncounted(h)), scales=scales)


def _nothing(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
    """Vectors take no extra step."""


def _with(extra: Implementation, then: Implementation) -> Implementation:
    extra = where(is_matrix, extra, otherwise=_nothing)

    def run(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        if abs(h.scalar) > FELT:
            extra(params, grads, states, h)
        then(params, grads, states, h)

    return run


class Zeal(FactAdamVectors):
    """Fact with an extra step for matrices while the loss changes.

    With b = (1−β1)·g, for g with two or more dims:

        |σ| > 0.6             p ← p − lr·sign(g)
        0.1 < |σ| ≤ 0.6       p ← p − lr·(‖g‖₂ + ε)·b/(1+|b|)

    then the whole step of Fact v3.0. The published rule has a momentum in b that it never advances, so that it is 0;
    none is kept here.
    """

    implementations = {
        "single": _with(_extra, FactAdamVectors.implementations["single"]),
        "foreach": _with(_extra, FactAdamVectors.implementations["foreach"]),
        "native": _with(
            where_it_fits(_native_extra, otherwise=_extra_of_finite),
            FactAdamVectors.implementations["native"],
        ),
        "sharded": _with(_extra, FactAdamVectors.implementations["sharded"]),
        "finite": _with(_extra_of_finite, FactAdamVectors.implementations["finite"]),
    }
    native_in_any_format = False
    reads_scalar = True
