"""Several groups of parameters and one emotion, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.emotion import ReferenceEmotion, coefficient, shadow_ratio
from tests.reference.rules import RULES, Options, State, mix_shadow


@dataclass
class ReferenceGroup:
    params: list[Tensor]
    options: Options
    use_shadow: bool = False
    maximize: bool = False


class ReferenceOptimizer:
    """Does what an emo optimizer of the given class name should do; `group.params` are replaced at every step."""

    def __init__(self, name: str, groups: list[ReferenceGroup], dtype: torch.dtype = torch.float64) -> None:
        self.rule = RULES[name]
        self.groups = groups
        self.dtype = dtype
        for group in groups:
            group.params = [p.detach().to(dtype).clone(memory_format=torch.contiguous_format) for p in group.params]
        self.states: list[list[State]] = [[{} for _ in group.params] for group in groups]
        self.emotion = ReferenceEmotion()

    def step(self, loss: float | None, gradients: list[list[Tensor | None]]) -> None:
        sigma = self.emotion.feel(loss)
        c, rho = coefficient(sigma), shadow_ratio(sigma)
        for group, states, row in zip(self.groups, self.states, gradients, strict=True):
            for index, gradient in enumerate(row):
                if gradient is None or gradient.numel() == 0:
                    continue
                p, state, g = group.params[index], states[index], gradient.to(self.dtype).contiguous()
                if group.maximize:
                    g = -g
                if group.use_shadow:
                    p = mix_shadow(p, state, rho, c)
                group.params[index] = self.rule(p, g, state, group.options, c)
