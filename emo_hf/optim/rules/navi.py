"""The Adam-type rule of EmoNavi and EmoSens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim.kernels.gpu.elementwise import elementwise as on_gpu
from emo_hf.optim.kernels.launch import elementwise
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.state_keys import EXP_AVG, EXP_AVG_SQ
from emo_hf.optim.tensors.chunking import bounded
from emo_hf.optim.tensors.dispatch import of_one_layout, state_tensors, where
from emo_hf.optim.tensors.low_precision import at_least_float32
from emo_hf.optim.update import Hyperparameters, State
from emo_hf.reading import Option, boolean

ANY_STEP_LATE_ENOUGH = 1e30
"""A step count at which 1 − βᵗ is exactly 1: the fused Adam kernel then computes no bias correction."""


def _single_tensor(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    for p, g, state in zip(params, grads, states, strict=True):
        m, v = state[EXP_AVG], state[EXP_AVG_SQ]
        m.mul_(h.beta1).add_(g, alpha=1 - h.beta1)
        v.mul_(h.beta2).addcmul_(g, g, value=1 - h.beta2)
        p.add_(p, alpha=-h.decay)
        p.addcdiv_(m, v.sqrt().add_(h.eps), value=-h.lr)


def _multi_tensor(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
) -> None:
    m, v = state_tensors(states, EXP_AVG), state_tensors(states, EXP_AVG_SQ)
    torch._foreach_mul_(m, h.beta1)
    torch._foreach_add_(m, grads, alpha=1 - h.beta1)
    torch._foreach_mul_(v, h.beta2)
    torch._foreach_addcmul_(v, grads, grads, 1 - h.beta2)
    torch._foreach_add_(params, params, alpha=-h.decay)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_add_(denominator, h.eps)
    torch._foreach_addcdiv_(params, m, denominator, -h.lr)


def _fused(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
    # The kernel decays by lr·wd with the rate that it steps with. Ours decays with a rate of its own, so the kernel
    # gets the quotient; where the step is 0 (|σ| = 1) there is no quotient, and the decay is a pass of its own.
    decay = h.decay / h.lr if h.lr > 0 else 0.0
    late = torch.full((), ANY_STEP_LATE_ENOUGH, dtype=torch.float32, device=params[0].device)
    torch._fused_adamw_(
        params,
        grads,
        state_tensors(states, EXP_AVG),
        state_tensors(states, EXP_AVG_SQ),
        [],
        [late] * len(params),
        lr=h.lr,
        beta1=h.beta1,
        beta2=h.beta2,
        weight_decay=decay,
        eps=h.eps,
        amsgrad=False,
        maximize=False,
    )
    if h.lr == 0 and h.decay != 0:
        torch._foreach_add_(params, params, alpha=-h.decay)


def adam_state(param: torch.Tensor) -> State:
    """m and v before the first step."""
    return {
        EXP_AVG: torch.zeros_like(param, memory_format=torch.preserve_format),
        EXP_AVG_SQ: torch.zeros_like(param, memory_format=torch.preserve_format),
    }


class Navi(Rule):
    """Adam without bias correction.

    m ← β1·m + (1−β1)·g            v ← β2·v + (1−β2)·g²
    p ← p − decay·p
    p ← p − lr · m / (√v + ε)

    Two tensors of state per parameter. With `bias_correction`, t steps after the start, it is Adam:

    p ← p − lr · m/(1−β1ᵗ) / (√(v/(1−β2ᵗ)) + ε)
    """

    implementations = {
        "single": _single_tensor,
        "foreach": bounded(_multi_tensor),
        "fused": where(of_one_layout, _fused, otherwise=at_least_float32(_single_tensor)),
        "native": elementwise("emo_navi", [EXP_AVG, EXP_AVG_SQ], otherwise=_single_tensor),
        "triton": on_gpu("navi", [EXP_AVG, EXP_AVG_SQ], otherwise=_single_tensor),
    }
    preference = {
        "cpu": ("native", "fused", "foreach"),
        "cuda": ("triton", "fused", "foreach"),
        "xpu": ("triton", "fused", "foreach"),
        "mps": ("fused",),
    }
    eight_bit_state = frozenset({EXP_AVG, EXP_AVG_SQ})
    options = {
        "bias_correction": Option(False, boolean, "correct the bias of both averages towards 0, as Adam does"),
    }

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        super().__init__(defaults)
        self._counts = bool(defaults["bias_correction"])
        self._steps = 0

    def new_state(self, param: torch.Tensor) -> State:
        return adam_state(param)

    def before_step(self, groups: Sequence[Mapping[str, Any]], decision: Decision) -> None:
        self._steps += self._counts

    def hyperparameters(self, group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        h = super().hyperparameters(group, decision)
        if not (self._counts and group["bias_correction"]):
            return h
        of_m, root_of_v = 1 - h.beta1**self._steps, math.sqrt(1 - h.beta2**self._steps)
        return replace(h, lr=h.lr * root_of_v / of_m, eps=h.eps * root_of_v)

    def memory(self) -> dict[str, float | None]:
        return {"steps": self._steps} if self._counts else {}

    def load_memory(self, saved: Mapping[str, Any]) -> None:
        self._steps = int(saved.get("steps", 0))
