"""The rule of EmoVoid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim.rules.rule import first_group_norm
from emo_hf.optim.rules.sign import Sign
from emo_hf.optim.sharding import local_elements
from emo_hf.optim.update import Hyperparameters

PULLS = 55


class Void(Sign):
    """Sign steps, and at first a pull that keeps the size of the weights.

    Once a step, over all parameters of the first parameter group, with j = 0 and no G' at the start:

        G = Σ‖p‖₁
        if there is a G' above 0 and j ≤ 55:    p ← γ·p with γ = G' / (G + 1e-8), for all of the group;   G ← G·γ
        G' ← G,   j ← j + 1

    Then, for the parameters of every group:

        p ← p − lr·sign(g)

    and when the stop signal begins, j ← 55. So steps 2 to 56 pull the first group back to its size, and one more each
    time the signal begins. A group that is zero at first, as LoRA's B is, is not pulled back to zero. No state per
    parameter; weight decay, betas and ε are not used.
    """

    reads_group = True

    unknown_at_first = frozenset({"norm"})

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        super().__init__(defaults)
        self._norm: float | torch.Tensor | None = None  # G'
        self._counter = 0  # j

    def hyperparameters(self, group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        return super().hyperparameters({**group, "weight_decay": 0.0}, decision)

    def before_step(self, groups: Sequence[Mapping[str, Any]], decision: Decision) -> None:
        if not float(groups[0]["lr"]):  # such a step moves nothing, and is none
            return
        norm, before = first_group_norm(groups[0], self._norm)
        if before is not None and self._counter <= PULLS:
            factor = torch.where(before > 0, before / (norm + 1e-8), torch.ones_like(norm))
            for param in groups[0]["params"]:
                local_elements(param.detach()).mul_(factor.to(param.device))
            norm = norm * factor
        self._norm = norm
        self._counter += 1

    def after_step(self, decision: Decision) -> None:
        if decision.stop_begins:
            self._counter = PULLS

    def memory(self) -> dict[str, float | None]:
        return {"norm": None if self._norm is None else float(self._norm), "counter": self._counter}

    def load_memory(self, saved: Mapping[str, Any]) -> None:
        self._norm = None if saved["norm"] is None else float(saved["norm"])
        self._counter = int(saved["counter"])
