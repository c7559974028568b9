"""RuleOptimizer: an optimizer whose parameters are moved by `Buckets`."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.laws.decision import ShadowMix
from emo_hf.optim.buckets import Buckets
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.update import Hyperparameters, State


class RuleOptimizer(Optimizer):
    """An update rule at work on parameter groups."""

    _rule: Rule

    @property
    def _buckets(self) -> Buckets:
        buckets: Buckets | None = self.__dict__.get("_made_buckets")
        if buckets is None:
            buckets = self.__dict__["_made_buckets"] = Buckets(self._rule, type(self).__name__)
        return buckets

    def _update_group(
        self, group: dict[str, Any], h: Hyperparameters, shadow: ShadowMix | None, some: list[Any] | None = None
    ) -> None:
        self._buckets.move(self.state, group, h, shadow, some)

    def _create_state(self) -> None:
        self._buckets.create_states(self.state, self.param_groups)

    def _first_state(self, group: dict[str, Any], param: torch.Tensor) -> State:
        return self._buckets.first_state(group, param)
