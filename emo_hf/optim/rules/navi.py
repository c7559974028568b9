"""EmoNavi: the Adam-type update rule."""

from __future__ import annotations

from typing import ClassVar

import torch

from emo_hf.optim.kernels.launch import elementwise
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.rules.rule import State, StepSize, column, of_one_layout, where
from emo_hf.optim.tensors.chunking import bounded

M = "exp_avg"
V = "exp_avg_sq"

ANY_STEP_LATE_ENOUGH = 1e30
"""A step count at which 1 − βᵗ is exactly 1: the fused Adam kernel then computes no bias correction."""


class EmoNavi(EmoOptimizer):
    """EmoNavi v3.1: Adam without bias correction, its step scaled by the emotion.

        m ← β1·m + (1−β1)·g            v ← β2·v + (1−β2)·g²
        p ← p − lr·wd·p
        p ← p − lr·c · m / (√v + ε)

    The most accurate of the family; two tensors of state per parameter.

    Args:
        params: parameters, named parameters, or parameter groups (dicts with `params`, optionally `name` and any of
            the options below). Groups without parameters are left out.
        lr: learning rate; a scheduler may change it. The emotion multiplies it, and never writes it.
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
        eps: added to the root in the denominator.
        weight_decay: decoupled weight decay, applied with the plain `lr`.
        use_shadow: keep a slow copy of the parameters and mix it in at sudden changes; one more tensor of state.
        maximize: climb instead of descend.
        foreach: True for the multi-tensor implementation, False against it, None to choose the best that works.
        fused: the same for torch's fused Adam kernel, which is the default where the device has it.
        compile: the same for our own kernel, which is the default for float32 in main memory.
        compensate: for bfloat16 and float16 parameters, keep what rounding takes from them; see `low_precision`.
        emo_sync: `global`, one emotion for all ranks of a distributed job; `local`, each rank its own; see `ranks`.
        emo_law: `v3.1`, or `robust` for losses around or below zero; see `laws`.

    Raises:
        ValueError: if an option is out of range or there are no parameters.

    Source: EmoNavi v3.1 by muooon.
    """

    preference: ClassVar[dict[str, tuple[str, ...]]] = {
        "cpu": ("compile", "fused", "foreach"),
        "cuda": ("fused", "foreach"),
        "xpu": ("fused", "foreach"),
        "mps": ("fused",),
    }

    def new_state(self, param: torch.Tensor) -> State:
        return {
            M: torch.zeros_like(param, memory_format=torch.preserve_format),
            V: torch.zeros_like(param, memory_format=torch.preserve_format),
        }


def _single_tensor(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    for p, g, state in zip(params, grads, states, strict=True):
        m, v = state[M], state[V]
        m.mul_(size.beta1).add_(g, alpha=1 - size.beta1)
        v.mul_(size.beta2).addcmul_(g, g, value=1 - size.beta2)
        p.add_(p, alpha=-size.decay)
        p.addcdiv_(m, v.sqrt().add_(size.eps), value=-size.step)


def _multi_tensor(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    m, v = column(states, M), column(states, V)
    torch._foreach_mul_(m, size.beta1)
    torch._foreach_add_(m, grads, alpha=1 - size.beta1)
    torch._foreach_mul_(v, size.beta2)
    torch._foreach_addcmul_(v, grads, grads, 1 - size.beta2)
    torch._foreach_add_(params, params, alpha=-size.decay)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_add_(denominator, size.eps)
    torch._foreach_addcdiv_(params, m, denominator, -size.step)


def _fused(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], size: StepSize) -> None:
    # The kernel decays by lr·wd with the rate that it steps with. Ours decays with the plain rate, so the kernel gets
    # the quotient; where the step is 0 (|σ| = 1) there is no quotient, and the decay is a pass of its own.
    decay = size.decay / size.step if size.step > 0 else 0.0
    late = torch.full((), ANY_STEP_LATE_ENOUGH, dtype=torch.float32, device=params[0].device)
    torch._fused_adamw_(
        params,
        grads,
        column(states, M),
        column(states, V),
        [],
        [late] * len(params),
        lr=size.step,
        beta1=size.beta1,
        beta2=size.beta2,
        weight_decay=decay,
        eps=size.eps,
        amsgrad=False,
        maximize=False,
    )
    if size.step == 0 and size.decay != 0:
        torch._foreach_add_(params, params, alpha=-size.decay)


EmoNavi.implementations = {
    "single": _single_tensor,
    "foreach": bounded(_multi_tensor),
    "fused": where(of_one_layout, _fused, otherwise=_single_tensor),
    "compile": elementwise("emo_navi", [M, V], otherwise=_single_tensor),
}
