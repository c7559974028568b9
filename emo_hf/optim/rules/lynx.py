"""EmoLynx: the Lion-type update rule."""

from __future__ import annotations

from typing import ClassVar

import torch

from emo_hf.optim.kernels.launch import elementwise
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.rules.rule import State, StepSize, column
from emo_hf.optim.tensors.chunking import bounded, in_pieces

M = "exp_avg"


class EmoLynx(EmoOptimizer):
    """EmoLynx v3.1: sign steps as Lion takes them, scaled by the emotion.

        p ← (1 − lr·wd)·p
        p ← p − lr·c · sign( β1·m + (1−β1)·g )
        m ← β2·m + (1−β2)·g

    Light and accurate; one tensor of state per parameter. As with Lion, a good learning rate is some 3 to 10 times
    smaller than Adam's.

    Args:
        params: parameters, named parameters, or parameter groups (dicts with `params`, optionally `name` and any of
            the options below). Groups without parameters are left out.
        lr: learning rate; a scheduler may change it. The emotion multiplies it, and never writes it.
        betas: β1 blends the step, β2 decays the average of the gradient; each in [0, 1).
        eps: accepted so that the three can be exchanged; this rule divides by nothing.
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

    Source: EmoLynx v3.1 by muooon.
    """

    preference: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("compile",), "cuda": ("foreach",), "xpu": ("foreach",)}

    def new_state(self, param: torch.Tensor) -> State:
        return {M: torch.zeros_like(param, memory_format=torch.preserve_format)}


def _single_tensor(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    for p, g, state in zip(params, grads, states, strict=True):
        m = state[M]
        direction = torch.mul(m, size.beta1).add_(g, alpha=1 - size.beta1).sign_()
        p.mul_(1 - size.decay)
        p.add_(direction, alpha=-size.step)
        m.mul_(size.beta2).add_(g, alpha=1 - size.beta2)


def _multi_tensor(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    m = column(states, M)
    direction = torch._foreach_mul(m, size.beta1)
    torch._foreach_add_(direction, grads, alpha=1 - size.beta1)
    torch._foreach_sign_(direction)
    torch._foreach_mul_(params, 1 - size.decay)
    torch._foreach_add_(params, direction, alpha=-size.step)
    torch._foreach_mul_(m, size.beta2)
    torch._foreach_add_(m, grads, alpha=1 - size.beta2)


EmoLynx.implementations = {
    "single": in_pieces(_single_tensor),
    "foreach": bounded(_multi_tensor),
    "compile": elementwise("emo_lynx", [M], otherwise=in_pieces(_single_tensor)),
}
