"""The formulas of the C kernels in plain torch, one tensor at a time, in the dtype of what they are given.

They change nothing and return what a kernel makes of the parameter and of its state tensors. The products are taken in
the kernels' order, so that they overflow at the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emo_hf.optim.update import Hyperparameters

Moved = tuple[Tensor, list[Tensor]]
Reference = Callable[[Tensor, Tensor, list[Tensor], Hyperparameters, float | None], Moved]


def average(beta: float, old: Tensor, new: Tensor) -> Tensor:
    return beta * old + (1 - beta) * new


def navi(p: Tensor, g: Tensor, state: list[Tensor], h: Hyperparameters, _: float | None) -> Moved:
    m = average(h.beta1, state[0], g)
    v = h.beta2 * state[1] + (1 - h.beta2) * g * g
    return p - h.decay * p - h.lr * m / (v.sqrt() + h.eps), [m, v]


def lynx(p: Tensor, g: Tensor, state: list[Tensor], h: Hyperparameters, _: float | None) -> Moved:
    b = average(h.beta1, state[0], g)
    return (1 - h.decay) * p - h.lr * b.sign(), [average(h.beta2, state[0], g)]


def fact_vector(p: Tensor, g: Tensor, state: list[Tensor], h: Hyperparameters, _: float | None) -> Moved:
    v = h.beta1 * state[0] + (1 - h.beta2) * g * g
    return p - h.decay * p - h.lr * (g / (v.sqrt() + h.eps)), [v]


def sign(p: Tensor, g: Tensor, _: list[Tensor], h: Hyperparameters, __: float | None) -> Moved:
    return p - h.decay * p - h.lr * g.sign(), []


def tion(p: Tensor, g: Tensor, state: list[Tensor], h: Hyperparameters, _: float | None) -> Moved:
    m = average(h.beta1, state[0], g)
    return p - h.lr * m.sign(), [m]


def neco(p: Tensor, g: Tensor, state: list[Tensor], h: Hyperparameters, scale: float | None) -> Moved:
    b = average(h.beta1, state[0], g)
    cautious = torch.where(b.sign() == g.sign(), b.sign(), 0)
    direction = cautious if scale is None else scale * (b / (1 + b.abs()))
    return (1 - h.decay) * p - h.lr * direction, [average(h.beta2, state[0], g)]


def zeal(p: Tensor, g: Tensor, _: list[Tensor], h: Hyperparameters, scale: float | None) -> Moved:
    b = (1 - h.beta1) * g
    return p - h.lr * (g.sign() if scale is None else scale * (b / (1 + b.abs()))), []


def fact(p: Tensor, g: Tensor, state: list[Tensor], h: Hyperparameters, _: float | None) -> Moved:
    squared = g * g
    r = average(h.beta1, state[0], (squared.mean(dim=list(range(1, g.dim())), keepdim=True) + h.eps).sqrt())
    k = average(h.beta1, state[1], (squared.mean(dim=0, keepdim=True) + h.eps).sqrt())
    return p - h.decay * p - h.lr * (g / (r.sqrt() * k.sqrt() + h.eps)), [r, k]


@dataclass(frozen=True)
class Case:
    """A kernel in one of its ways to work.

    Attributes:
        function: its name in C.
        reference: its formula.
        state_tensors: how many it has.
        scaled: whether it is given a scale per tensor.
    """

    function: str
    reference: Reference
    state_tensors: int
    scaled: bool = False

    def __str__(self) -> str:
        return self.function + ("-scaled" if self.scaled else "")


CASES = [
    Case("emo_navi", navi, 2),
    Case("emo_lynx", lynx, 1),
    Case("emo_fact_vector", fact_vector, 1),
    Case("emo_sign", sign, 0),
    Case("emo_tion", tion, 1),
    Case("emo_neco", neco, 1),
    Case("emo_neco", neco, 1, scaled=True),
    Case("emo_zeal", zeal, 0),
    Case("emo_zeal", zeal, 0, scaled=True),
]
