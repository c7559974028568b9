"""One parameter, one gradient, one step: every rule returns the new parameter.

`state` is a dict that starts empty and belongs to one parameter. All tensors are of one dtype, float64 unless the
caller wants to see what rounding does. Rules that take the sign of a sum remember in `state["doubtful"]` where it was
all but zero: the sign is a matter of rounding there, and a comparison has to look away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """The options of one parameter group, by the names of the papers, and the numbers of a step with them."""

    lr: float
    wd: float
    beta1: float
    beta2: float
    eps: float
    lynx_betas: tuple[float, float] = (0.9, 0.99)
    decoupled_weight_decay: bool = False
    first_lr: float = 1e-3  # lr₀, the constructor's, that `decoupled_weight_decay` divides by
    rate: float = 0.0  # η of the step
    decay: float = 0.0  # the share of the parameter that decays, the rate of the decay times wd
    decay_beside: float = 0.0  # the same where `decoupled_weight_decay` does not reach
    sigma: float = 0.0  # σ, for the rules that choose by its size
    freshness: float = 1.0  # f of EmoTion
    doubt: float = 1e-3  # the share of its terms below which the sign of a sum is a matter of rounding


def kept(state: State, key: str, like: Tensor) -> Tensor:
    """A tensor of the state, which starts at zero."""
    return state.get(key, torch.zeros_like(like))


def sign_of_sum(state: State, first: Tensor, second: Tensor, n: Options) -> Tensor:
    """sign(first + second)."""
    magnitude = first.abs() + second.abs()
    doubtful = ((first + second).abs() < n.doubt * magnitude) & (magnitude > 0)
    state["doubtful"] = state.get("doubtful", torch.zeros_like(doubtful)) | doubtful
    return (first + second).sign()


def adam_step(g: Tensor, state: State, n: Options) -> Tensor:
    """u = m/(√v + ε), without bias correction."""
    m = n.beta1 * kept(state, "m", g) + (1 - n.beta1) * g
    v = n.beta2 * kept(state, "v", g) + (1 - n.beta2) * g**2
    state["m"], state["v"] = m, v
    return m / (v.sqrt() + n.eps)


def factored_step(g: Tensor, state: State, n: Options) -> Tensor:
    """u = g/(√(r·k) + ε), of two and more dimensions."""
    r_hat = (g**2).mean(dim=list(range(1, g.dim())), keepdim=True) + n.eps
    k_hat = (g**2).mean(dim=0, keepdim=True) + n.eps
    r = n.beta1 * kept(state, "r", r_hat) + (1 - n.beta1) * r_hat.sqrt()
    k = n.beta1 * kept(state, "k", k_hat) + (1 - n.beta1) * k_hat.sqrt()
    state["r"], state["k"] = r, k
    return g / ((r * k).sqrt() + n.eps)


def moved(p: Tensor, u: Tensor, n: Options) -> Tensor:
    """p ← p − decay·p; p ← p − η·u."""
    p = p - n.decay * p
    return p - n.rate * u


def navi(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """u = m/(√v + ε)."""
    return moved(p, adam_step(g, state, n), n)


def fact(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """u of `factored_step`; below two dimensions g/(√v + ε), where v decays by β1 and gains 1−β2."""
    if g.dim() >= 2:
        return moved(p, factored_step(g, state, n), n)
    v = n.beta1 * kept(state, "v", g) + (1 - n.beta2) * g**2
    state["v"] = v
    return moved(p, g / (v.sqrt() + n.eps), n)


def fact_v30(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """As `fact`, but Adam's step below two dimensions."""
    return moved(p, factored_step(g, state, n) if g.dim() >= 2 else adam_step(g, state, n), n)


def lynx(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """p ← (1 − decay)·p; p ← p − η·sign(β1·m + (1−β1)·g); m ← β2·m + (1−β2)·g."""
    m = kept(state, "m", g)
    direction = sign_of_sum(state, n.beta1 * m, (1 - n.beta1) * g, n)
    p = (1 - n.decay) * p
    p = p - n.rate * direction
    state["m"] = n.beta2 * m + (1 - n.beta2) * g
    return p


def sign(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """u = sign(g)."""
    return moved(p, g.sign(), n)


def clan(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """One of three rules by a = |σ|, each with a state of its own that stands still while another is chosen."""
    a = abs(n.sigma)
    chosen = "lynx" if a > 0.6 else "fact" if a > 0.3 else "navi"
    own = {key.removeprefix(chosen + "."): value for key, value in state.items() if key.startswith(chosen + ".")}
    if chosen == "lynx":
        beta1, beta2 = n.lynx_betas
        p = lynx(p, g, own, replace(n, beta1=beta1, beta2=beta2))
    elif chosen == "fact":
        p = fact_v30(p, g, own, replace(n, decay=n.decay_beside))
    else:
        p = navi(p, g, own, replace(n, decay=n.decay_beside))
    state.update({f"{chosen}.{key}": value for key, value in own.items()})
    if "lynx.doubtful" in state:
        state["doubtful"] = state["lynx.doubtful"]
    return p


def softened(b: Tensor, g: Tensor, n: Options) -> Tensor:
    """(‖g‖₂ + ε)·b/(1 + |b|)."""
    return (g.square().sum().sqrt() + n.eps) * b / (1 + b.abs())


def zeal(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """Of two and more dimensions an extra step by b = (1−β1)·g, chosen by a = |σ|, then the step of Fact."""
    if g.dim() >= 2:
        a, b = abs(n.sigma), (1 - n.beta1) * g
        if a > 0.6:
            p = p - n.rate * torch.where(b.sign() == g.sign(), b.sign(), torch.zeros_like(b))
        elif a > 0.1:
            p = p - n.rate * softened(b, g, n)
    return fact_v30(p, g, state, n)


def neco(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """A softened step where 0.2 < a ≤ 0.5; elsewhere sign(b), where gradient and blend agree on it."""
    m = kept(state, "m", g)
    p = (1 - n.decay) * p
    b = (1 - n.beta1) * g + n.beta1 * m
    if 0.2 < abs(n.sigma) <= 0.5:
        p = p - n.rate * softened(b, g, n)
    else:
        direction = sign_of_sum(state, (1 - n.beta1) * g, n.beta1 * m, n)
        p = p - n.rate * torch.where(direction == g.sign(), direction, torch.zeros_like(b))
    state["m"] = n.beta2 * m + (1 - n.beta2) * g
    return p


def tion(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """With α = (1−β1)·f:  m ← (1−α)·m + α·g; p ← p − η·sign(m). No weight decay."""
    alpha = (1 - n.beta1) * n.freshness
    m = kept(state, "m", g)
    direction = sign_of_sum(state, (1 - alpha) * m, alpha * g, n)
    state["m"] = (1 - alpha) * m + alpha * g
    return p - n.rate * direction


def void(p: Tensor, g: Tensor, state: State, n: Options) -> Tensor:
    """p ← p − η·sign(g). No weight decay."""
    return p - n.rate * g.sign()


Rule = Callable[[Tensor, Tensor, State, Options], Tensor]
OF_RULE: dict[Rule, str] = {
    navi: "EmoNavi-v3.0 EmoNavi-v3.1 EmoNavi-v3.6 EmoSens-v3.9",
    fact_v30: "EmoFact-v3.0",
    fact: "EmoFact-v3.1",
    sign: "EmoFact-v3.6 EmoAiry-v3.9",
    lynx: "EmoLynx-v3.0 EmoLynx-v3.1 EmoLynx-v3.6 EmoCats-v3.9",
    clan: "EmoClan-v3.0",
    zeal: "EmoZeal-v3.0",
    neco: "EmoNeco-v3.0",
    tion: "EmoTion-v3.9",
    void: "EmoVoid-v3.9",
}
RULES: dict[tuple[str, str], Rule] = {
    (name, version): rule
    for rule, those in OF_RULE.items()
    for name, version in (one.split("-") for one in those.split())
}
