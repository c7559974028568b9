"""The Adam-type rule of EmoNavi and EmoSens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim.precision.low import in_float32_if_kept_in_less
from emo_hf.optim.rules.rule import Rule, each_way, zeros
from emo_hf.optim.state_keys import EXP_AVG, EXP_AVG_SQ
from emo_hf.optim.update import Bucket, Hyperparameters, State, of_one_layout, where
from emo_hf.reading import Option, boolean

ANY_STEP_LATE_ENOUGH = 1e30
"""A step count at which 1 − βᵗ is exactly 1: the fused Adam kernel then computes no bias correction."""


def _move(bucket: Bucket, h: Hyperparameters) -> None:
    p, g, m, v = bucket.params, bucket.grads, bucket.state(EXP_AVG), bucket.state(EXP_AVG_SQ)
    torch._foreach_mul_(m, h.beta1)
    torch._foreach_add_(m, g, alpha=1 - h.beta1)
    torch._foreach_mul_(v, h.beta2)
    torch._foreach_addcmul_(v, g, g, 1 - h.beta2)
    torch._foreach_add_(p, p, alpha=-h.decay)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_add_(denominator, h.eps)
    torch._foreach_addcdiv_(p, m, denominator, -h.lr)


def _fused(bucket: Bucket, h: Hyperparameters) -> None:
    # The kernel decays by lr·wd with the rate that it steps with. Ours decays with a rate of its own, so the kernel
    # gets the quotient; where the step is 0 (|σ| = 1) there is no quotient, and the decay is a pass of its own.
    p = bucket.params
    late = torch.full((), ANY_STEP_LATE_ENOUGH, dtype=torch.float32, device=p[0].device)
    torch._fused_adamw_(
        p,
        bucket.grads,
        bucket.state(EXP_AVG),
        bucket.state(EXP_AVG_SQ),
        [],
        [late] * len(p),
        lr=h.lr,
        beta1=h.beta1,
        beta2=h.beta2,
        weight_decay=h.decay / h.lr if h.lr > 0 else 0.0,
        eps=h.eps,
        amsgrad=False,
        maximize=False,
    )
    if h.lr == 0 and h.decay != 0:
        torch._foreach_add_(p, p, alpha=-h.decay)


_EACH_WAY = each_way("navi", [EXP_AVG, EXP_AVG_SQ], _move)


class Navi(Rule):
    """Adam without bias correction.

    m ← β1·m + (1−β1)·g            v ← β2·v + (1−β2)·g²
    p ← p − decay·p
    p ← p − lr · m / (√v + ε)

    Two tensors of state per parameter. With `bias_correction`, t steps after the start, it is Adam:

    p ← p − lr · m/(1−β1ᵗ) / (√(v/(1−β2ᵗ)) + ε)
    """

    implementations = {
        **_EACH_WAY,
        "fused": where(
            of_one_layout, _fused, otherwise=in_float32_if_kept_in_less(_EACH_WAY["single"], elementwise=True)
        ),
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
        return zeros(param, EXP_AVG, EXP_AVG_SQ)

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
