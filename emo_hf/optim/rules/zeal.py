"""The rule of EmoZeal."""

from __future__ import annotations

from dataclasses import replace

import torch

from emo_hf.optim.kernels.launch import run_elementwise, where_it_fits
from emo_hf.optim.left_out import LeftOut, masked
from emo_hf.optim.pieces import cut, piece_for
from emo_hf.optim.rules.fact import FactAdamVectors, is_matrix
from emo_hf.optim.sharding import own_elements, whole_norms
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, where

LOUD = 0.6  # |σ| above: an extra step by the sign
FELT = 0.1  # |σ| above: an extra step by the size


def _extra(bucket: Bucket, h: Hyperparameters) -> None:
    own_grads = [own_elements(grad, like=param) for param, grad, _ in bucket]
    norms = whole_norms(bucket.params, own_grads, 2)
    for param, g, norm in zip(bucket.params, own_grads, norms, strict=True):
        p = own_elements(param)
        for p_piece, g_piece, _ in cut(Bucket([p], [g], [{}]), piece_for(p)):
            if abs(h.scalar) > LOUD:
                p_piece.add_(g_piece.sign(), alpha=-h.lr)
            else:
                b = g_piece * (1 - h.beta1)
                p_piece.sub_(b.div_(b.abs().add_(1)).mul_(norm + h.eps).mul_(h.lr))


def _uncounted(h: Hyperparameters) -> LeftOut | None:
    """Leaves out what is to be left out, which the step of Fact that follows counts."""
    return None if h.left_out is None else LeftOut()


def _extra_of_finite(bucket: Bucket, h: Hyperparameters) -> None:
    without_state = Bucket(bucket.params, bucket.grads, [{}] * len(bucket))
    masked(_extra)(without_state, replace(h, left_out=_uncounted(h)))


def _native_extra(bucket: Bucket, h: Hyperparameters) -> None:
    p, g = bucket.params, bucket.grads
    scales = None if abs(h.scalar) > LOUD else torch.stack(whole_norms(p, g, 2)) + h.eps
    if scales is not None and h.left_out is not None and not bool(scales.isfinite().all()):
        return _extra_of_finite(bucket, h)
    return run_elementwise("emo_zeal", p, g, [], replace(h, left_out=_uncounted(h)), scales=scales)


def _nothing(bucket: Bucket, h: Hyperparameters) -> None:
    """Vectors take no extra step."""


def _with(extra: Implementation, name: str) -> Implementation:
    extra, then = where(is_matrix, extra, otherwise=_nothing), FactAdamVectors.implementations[name]

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        if abs(h.scalar) > FELT:
            extra(bucket, h)
        then(bucket, h)

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
        "single": _with(_extra, "single"),
        "foreach": _with(_extra, "foreach"),
        "native": _with(where_it_fits(_native_extra, otherwise=_extra_of_finite), "native"),
        "sharded": _with(_extra, "sharded"),
        "finite": _with(_extra_of_finite, "finite"),
    }
    native_in_any_format = False
    reads_scalar = True
