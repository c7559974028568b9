"""The rule of EmoNeco."""

from __future__ import annotations

import torch

from emo_hf.optim.kernels.launch import elementwise
from emo_hf.optim.pieces import cut, piece_for
from emo_hf.optim.rules.lynx import Lynx, RelativeDecay
from emo_hf.optim.rules.rule import careful
from emo_hf.optim.sharding import local_elements, whole_norms
from emo_hf.optim.state_keys import EXP_AVG
from emo_hf.optim.update import Bucket, Hyperparameters


def _is_by_size(h: Hyperparameters) -> bool:
    return 0.2 < abs(h.scalar) <= 0.5


def _move(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, norm: torch.Tensor | None, h: Hyperparameters) -> None:
    b = torch.mul(m, h.beta1).add_(g, alpha=1 - h.beta1)
    p.mul_(1 - h.decay)
    if norm is None:
        sign = b.sign_()
        p.add_(sign.mul_(sign == g.sign()), alpha=-h.lr)
    else:
        p.sub_(b.div_(b.abs().add_(1)).mul_(norm + h.eps).mul_(h.lr))
    m.mul_(h.beta2).add_(g, alpha=1 - h.beta2)


def _in_pieces(bucket: Bucket, h: Hyperparameters) -> None:
    own_grads = [local_elements(grad, like=param) for param, grad, _ in bucket]
    norms = whole_norms(bucket.params, own_grads, 2) if _is_by_size(h) else [None] * len(bucket)
    for param, g, m, norm in zip(bucket.params, own_grads, bucket.state(EXP_AVG), norms, strict=True):
        p = local_elements(param)
        for p_piece, g_piece, state in cut(Bucket([p], [g], [{EXP_AVG: local_elements(m)}]), piece_for(p)):
            _move(p_piece, g_piece, state[EXP_AVG], norm, h)


class Neco(RelativeDecay, Lynx):
    """Cautious sign steps, and in a middle range of |σ| steps of the size of the gradient.

    p ← (1 − decay)·p
    b = (1−β1)·g + β1·m
    0.2 < |σ| ≤ 0.5:    p ← p − lr·(‖g‖₂ + ε)·b/(1+|b|)
    otherwise:          p ← p − lr·d,    d = sign(b) where sign(b) = sign(g), else 0
    m ← β2·m + (1−β2)·g

    One tensor of state per parameter.
    """

    implementations = {
        "single": _in_pieces,
        "native": elementwise("neco", [EXP_AVG], careful(_in_pieces), _is_by_size),
        "sharded": _in_pieces,
    }
    elementwise = False
    native_in_any_format = False
    reads_scalar = True
