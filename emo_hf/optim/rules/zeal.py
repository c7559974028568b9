"""The rule of EmoZeal."""

from __future__ import annotations

from dataclasses import replace

from emo_hf.optim.kernels.launch import elementwise
from emo_hf.optim.left_out import LeftOut, masked
from emo_hf.optim.pieces import cut, piece_for
from emo_hf.optim.rules.fact import FactAdamVectors, is_matrix
from emo_hf.optim.rules.rule import careful
from emo_hf.optim.sharding import local_elements, whole_norms
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, where

LOUD = 0.6  # |σ| above: an extra step by the sign
FELT = 0.1  # |σ| above: an extra step by the size


def _is_by_size(h: Hyperparameters) -> bool:
    return abs(h.scalar) <= LOUD


def _extra(bucket: Bucket, h: Hyperparameters) -> None:
    own_grads = [local_elements(grad, like=param) for param, grad, _ in bucket]
    norms = whole_norms(bucket.params, own_grads, 2)
    for param, g, norm in zip(bucket.params, own_grads, norms, strict=True):
        p = local_elements(param)
        for p_piece, g_piece, _ in cut(Bucket([p], [g], [{}]), piece_for(p)):
            if _is_by_size(h):
                b = g_piece * (1 - h.beta1)
                p_piece.sub_(b.div_(b.abs().add_(1)).mul_(norm + h.eps).mul_(h.lr))
            else:
                p_piece.add_(g_piece.sign(), alpha=-h.lr)


def _uncounted(extra: Implementation) -> Implementation:
    """`extra` without state, which counts nothing that it leaves out: the step of Fact that follows does."""

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        without_state = Bucket(bucket.params, bucket.grads, [{}] * len(bucket))
        extra(without_state, replace(h, left_out=None if h.left_out is None else LeftOut()))

    return run


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
        "native": _with(_uncounted(elementwise("zeal", [], careful(_extra), _is_by_size)), "native"),
        "sharded": _with(_extra, "sharded"),
        "finite": _with(_uncounted(masked(_extra)), "finite"),
    }
    native_in_any_format = False
    reads_scalar = True
