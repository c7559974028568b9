"""Steps by the sign of the gradient: the rule of EmoFact v3.6 and EmoAiry."""

from __future__ import annotations

import torch

from emo_hf.optim.kernels.gpu.elementwise import elementwise as on_gpu
from emo_hf.optim.kernels.launch import elementwise
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.tensors.chunking import bounded, in_pieces
from emo_hf.optim.update import Hyperparameters, State


def _single_tensor(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    for p, g in zip(params, grads, strict=True):
        p.add_(p, alpha=-h.decay)
        p.add_(g.sign(), alpha=-h.lr)


def _multi_tensor(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    torch._foreach_add_(params, params, alpha=-h.decay)
    torch._foreach_add_(params, torch._foreach_sign(grads), alpha=-h.lr)


class Sign(Rule):
    """Steps by the sign of the gradient.

    p ← p − decay·p
    p ← p − lr · sign(g)

    No state. The published optimizers keep factored second moments, divide by their root, which is positive, and take
    the sign: the same step.
    """

    implementations = {
        "single": in_pieces(_single_tensor),
        "foreach": bounded(_multi_tensor),
        "native": elementwise("emo_sign", [], otherwise=in_pieces(_single_tensor)),
        "triton": on_gpu("sign", [], otherwise=in_pieces(_single_tensor)),
    }
    preference = {"cpu": ("native",), "cuda": ("triton", "foreach"), "xpu": ("triton", "foreach")}
