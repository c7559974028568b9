"""Section 3 of SPEC.md: one parameter, one gradient, one step. Every rule returns the new parameter.

`state` is a dict that starts empty and belongs to one parameter. All tensors are of one dtype, float64 unless the
caller wants to see what rounding does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """The numbers of one parameter group."""

    lr: float
    wd: float
    beta1: float
    beta2: float
    eps: float


def emonavi(p: Tensor, g: Tensor, state: State, o: Options, c: float) -> Tensor:
    m = o.beta1 * state.get("m", torch.zeros_like(g)) + (1 - o.beta1) * g
    v = o.beta2 * state.get("v", torch.zeros_like(g)) + (1 - o.beta2) * g**2
    state["m"], state["v"] = m, v
    p = p - o.lr * o.wd * p
    return p - o.lr * c * m / (v.sqrt() + o.eps)


def emofact(p: Tensor, g: Tensor, state: State, o: Options, c: float) -> Tensor:
    if g.dim() >= 2:
        r_hat = (g**2).mean(dim=list(range(1, g.dim())), keepdim=True) + o.eps
        k_hat = (g**2).mean(dim=0, keepdim=True) + o.eps
        r = o.beta1 * state.get("r", torch.zeros_like(r_hat)) + (1 - o.beta1) * r_hat.sqrt()
        k = o.beta1 * state.get("k", torch.zeros_like(k_hat)) + (1 - o.beta1) * k_hat.sqrt()
        state["r"], state["k"] = r, k
        u = g / ((r * k).sqrt() + o.eps)
    else:
        v = o.beta1 * state.get("v", torch.zeros_like(g)) + (1 - o.beta2) * g**2
        state["v"] = v
        u = g / (v.sqrt() + o.eps)
    p = p - o.lr * o.wd * p
    return p - o.lr * c * u


def emolynx(p: Tensor, g: Tensor, state: State, o: Options, c: float) -> Tensor:
    m = state.get("m", torch.zeros_like(g))
    blend = o.beta1 * m + (1 - o.beta1) * g
    # Where the blend is all but 0 the sign is a matter of rounding: remembered, so that a comparison can look away.
    magnitude = o.beta1 * m.abs() + (1 - o.beta1) * g.abs()
    doubtful = (blend.abs() < 1e-2 * magnitude) & (magnitude > 0)
    state["doubtful"] = state.get("doubtful", torch.zeros_like(g, dtype=torch.bool)) | doubtful
    p = (1 - o.lr * o.wd) * p
    p = p - o.lr * c * blend.sign()
    state["m"] = o.beta2 * m + (1 - o.beta2) * g
    return p


Rule = Callable[[Tensor, Tensor, State, Options, float], Tensor]
RULES: dict[str, Rule] = {"EmoNavi": emonavi, "EmoFact": emofact, "EmoLynx": emolynx}


def mix_shadow(p: Tensor, state: State, rho: float, c: float) -> Tensor:
    """Section 2, before the update of the same parameter."""
    shadow = state.get("shadow", p.clone())
    if rho > 0:
        p = (1 - rho) * p + c * shadow
    elif rho < 0:
        shadow = shadow + 0.1 * (p - shadow)
    else:
        shadow = shadow + 0.1 * c * (p - shadow)
    state["shadow"] = shadow
    return p
