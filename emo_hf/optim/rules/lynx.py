"""The Lion-type rule of EmoLynx and EmoCats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim.rules.rule import Rule, each_way, zeros
from emo_hf.optim.state_keys import EXP_AVG
from emo_hf.optim.update import Bucket, Hyperparameters, State
from emo_hf.reading import Option, boolean


def _move(bucket: Bucket, h: Hyperparameters) -> None:
    p, g, m = bucket.params, bucket.grads, bucket.state(EXP_AVG)
    direction = torch._foreach_mul(m, h.beta1)
    torch._foreach_add_(direction, g, alpha=1 - h.beta1)
    torch._foreach_sign_(direction)
    torch._foreach_mul_(p, 1 - h.decay)
    torch._foreach_add_(p, direction, alpha=-h.lr)
    torch._foreach_mul_(m, h.beta2)
    torch._foreach_add_(m, g, alpha=1 - h.beta2)


class Lynx(Rule):
    """Sign steps, as Lion takes them.

    p ← (1 − decay)·p
    p ← p − lr · sign( β1·m + (1−β1)·g )
    m ← β2·m + (1−β2)·g

    One tensor of state per parameter. A good learning rate is some 3 to 10 times smaller than Adam's; `eps` is
    accepted, so that the optimizers can be exchanged, and divides nothing.
    """

    implementations = each_way("lynx", [EXP_AVG], _move)
    eight_bit_state = frozenset({EXP_AVG})

    def new_state(self, param: torch.Tensor) -> State:
        return zeros(param, EXP_AVG)


class RelativeDecay(Rule):
    """What Lynx, Neco and Clan of v3.0 have beside: a weight decay that may be relative to the first learning rate.

    `decoupled_weight_decay` makes the decay of a step (lr/lr₀)·wd, where lr₀ is the constructor's `lr`. The published
    name is upside down: without it the decay is decoupled as in the others, lr·wd.
    """

    options = {
        "decoupled_weight_decay": Option(False, boolean, "decay by (lr/lr₀)·wd, with the constructor's lr as lr₀"),
    }

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        super().__init__(defaults)
        self._first_lr = float(defaults["lr"])
        if defaults["decoupled_weight_decay"] and not self._first_lr:
            raise ValueError("decoupled_weight_decay divides by the constructor's lr: give one above 0")

    def hyperparameters(self, group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        h = super().hyperparameters(group, decision)
        return replace(h, decay=h.decay / self._first_lr) if group["decoupled_weight_decay"] else h

    def memory(self) -> dict[str, float | None]:
        return {**super().memory(), "first_lr": self._first_lr}

    def load_memory(self, saved: Mapping[str, Any]) -> None:
        super().load_memory(saved)
        self._first_lr = float(saved["first_lr"])


class LynxRelativeDecay(RelativeDecay, Lynx):
    """Lynx of v3.0."""

    __doc__ = Lynx.__doc__
