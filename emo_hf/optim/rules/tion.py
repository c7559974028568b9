"""The rule of EmoTion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim.kernels.launch import elementwise
from emo_hf.optim.pieces import bounded, in_pieces
from emo_hf.optim.rules.rule import Rule, careful, first_group_norm, zeros
from emo_hf.optim.state_keys import EXP_AVG
from emo_hf.optim.update import Bucket, Hyperparameters, State
from emo_hf.reading import Option, boolean


def _gain(h: Hyperparameters) -> Any:
    """α = (1−β1)·f, a float or a tensor without dims."""
    return (1 - h.beta1) * h.extra["freshness"]


def _move(bucket: Bucket, h: Hyperparameters) -> None:
    p, g, m, alpha = bucket.params, bucket.grads, bucket.state(EXP_AVG), _gain(h)
    torch._foreach_mul_(m, 1 - alpha)
    torch._foreach_add_(m, torch._foreach_mul(g, alpha))
    torch._foreach_add_(p, torch._foreach_sign(m), alpha=-h.lr)


_SINGLE = in_pieces(_move)
_as_lynx = elementwise("lynx", [EXP_AVG], otherwise=careful(_SINGLE, elementwise=True))


def _native(bucket: Bucket, h: Hyperparameters) -> None:
    """Lynx with β1 = β2 = 1−α steps by the sign of the new m, too."""
    beta = 1 - float(_gain(h))
    _as_lynx(bucket, replace(h, decay=0.0, beta1=beta, beta2=beta, extra={"freshness": 1.0}))


class Tion(Rule):
    """Sign steps along an average of the gradient that is the fresher, the more the weights change.

    Once a step, over all parameters of the first parameter group:

        G = Σ‖p‖₁
        first step:     f = 1                                       G' ← G
        afterwards:     ϱ = |G − G'| / (G' + 1e-8)
                        f = max( tanh(ϱ/0.03), β₃ )                 G' ← G·ϱ, or G with `remember_true_norm`

    where β₃ = 1 − β1 of the constructor. Then, for the parameters of every group, α = (1−β1)·f:

        m ← (1−α)·m + α·g
        p ← p − lr·sign(m)

    One tensor of state per parameter. Weight decay, β2 and ε are not used. What the published rule remembers, G·ϱ, is
    no norm: for small changes two steps of three then have f = 1, whatever the weights do.
    """

    implementations = {"single": _SINGLE, "foreach": bounded(_move), "native": _native}
    eight_bit_state = frozenset({EXP_AVG})
    reads_group = True
    options = {
        "remember_true_norm": Option(False, boolean, "remember the norm of the weights: repairs the published rule"),
    }

    unknown_at_first = frozenset({"norm"})

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        super().__init__(defaults)
        self._least = 1.0 - defaults["betas"][0]
        self._norm: float | torch.Tensor | None = None  # G'
        self._freshness: float | torch.Tensor = 1.0  # f

    def new_state(self, param: torch.Tensor) -> State:
        return zeros(param, EXP_AVG)

    def hyperparameters(self, group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        h = super().hyperparameters(group, decision)
        return replace(h, decay=0.0, extra={"freshness": self._freshness})

    def before_step(self, groups: Sequence[Mapping[str, Any]], decision: Decision) -> None:
        if not float(groups[0]["lr"]):  # such a step moves nothing, and is none
            return
        norm, before = first_group_norm(groups[0], self._norm)
        if before is None:
            self._norm, self._freshness = norm, 1.0
            return
        change = (norm - before).abs() / (before + 1e-8)
        self._freshness = torch.tanh(change / 0.03).clamp(min=self._least)
        self._norm = norm if groups[0]["remember_true_norm"] else norm * change

    def memory(self) -> dict[str, float | None]:
        norm = None if self._norm is None else float(self._norm)
        return {"norm": norm, "freshness": float(self._freshness)}

    def load_memory(self, saved: Mapping[str, Any]) -> None:
        self._norm = None if saved["norm"] is None else float(saved["norm"])
        self._freshness = float(saved["freshness"])
