"""Several groups of parameters and one emotion, in float64.

EmoTion and EmoVoid look at the first group once a step, before any parameter moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.reference.laws import LAWS, Step
from tests.reference.rules import RULES, Options, State

BY_SIGMA = {("EmoFact", "v3.6"), ("EmoLynx", "v3.6")}  # whose stop signal looks at σ
RELATIVE_DECAY = {("EmoLynx", "v3.0"), ("EmoNeco", "v3.0"), ("EmoClan", "v3.0")}


@dataclass
class ReferenceGroup:
    params: list[Tensor]
    options: Options
    use_shadow: bool = False
    maximize: bool = False
    states: list[State] = field(default_factory=list)


@dataclass
class ReferenceOptimizer:
    """Does what the optimizer of a class name and a version should do; `group.params` are replaced at every step.

    The options of a group may be changed between steps, as a scheduler does it.
    """

    name: str  # of the class
    version: str  # the generation
    groups: list[ReferenceGroup]
    law: str | None = None  # if not the generation's own; `none` feels as its own does, and does nothing
    law_options: dict[str, Any] = field(default_factory=dict)
    remember_true_norm: bool = False  # EmoTion with its slip mended
    beta1: float | None = None  # of the constructor, for EmoTion; the first group's if it is left out
    doubt: float = 1e-3  # below which share of its terms the sign of a sum is not to be compared
    norm: float | None = None  # G'
    freshness: float = 1.0  # f of EmoTion
    counter: int = 0  # j of EmoVoid

    def __post_init__(self) -> None:
        for group in self.groups:
            group.params = [p.detach().double().clone(memory_format=torch.contiguous_format) for p in group.params]
            group.states = [{} for _ in group.params]
        named = (self.name, self.version)
        self.rule, self.relative_decay = RULES[named], named in RELATIVE_DECAY
        chosen = self.version if self.law in (None, "none") else self.law
        preset = {"stop_scalar": "sigma"} if chosen == self.version and named in BY_SIGMA else {}
        self.emotion = LAWS[chosen](**{**preset, **self.law_options})
        self.least_freshness = 1 - (self.groups[0].options.beta1 if self.beta1 is None else self.beta1)  # β₃

    def step(self, loss: float | None, gradients: list[list[Tensor | None]]) -> None:
        """Feel the loss, then move every parameter that has a gradient."""
        felt = self.emotion.feel(loss)
        if self.law == "none":
            felt = replace(felt, factor=1.0, decay_factor=1.0, floor=0.0)
        if self.groups[0].options.lr:  # at a rate of 0 nothing moves, and nothing is counted
            self.look_at_first_group(self.groups[0])
        for group, row in zip(self.groups, gradients, strict=True):
            numbers = self.numbers(group.options, felt)
            for index, gradient in enumerate(row):
                if gradient is None or gradient.numel() == 0:
                    continue
                p, state, g = group.params[index], group.states[index], gradient.double().contiguous()
                if group.use_shadow and felt.shadow is not None:
                    keep, pull, follow = felt.shadow
                    shadow = state.get("shadow", p.clone())
                    p = keep * p + pull * shadow
                    state["shadow"] = shadow + follow * (p - shadow)
                group.params[index] = self.rule(p, -g if group.maximize else g, state, numbers)
        if felt.stop_begins:
            self.counter = 55

    def look_at_first_group(self, group: ReferenceGroup) -> None:
        """EmoTion: how much the norm has changed. EmoVoid: back to the norm of before, but not while that is 0."""
        now = sum(p.abs().sum().item() for p in group.params)  # G = Σ ‖p‖₁
        if self.name == "EmoTion" and self.norm is not None:
            change = abs(now - self.norm) / (self.norm + 1e-8)
            self.freshness = max(math.tanh(change / 0.03), self.least_freshness)
            now = now if self.remember_true_norm else now * change  # as published
        if self.name == "EmoVoid" and self.norm and self.counter <= 55:
            gamma = self.norm / (now + 1e-8)
            group.params = [gamma * p for p in group.params]
            now = now * gamma
        self.norm = now
        self.counter += 1

    def numbers(self, o: Options, felt: Step) -> Options:
        """The options of a group with the numbers of this step."""
        decay = felt.decay_rate(o.lr) * o.wd
        relative = self.relative_decay and o.decoupled_weight_decay
        return replace(
            o,
            rate=felt.rate(o.lr),
            decay=decay / o.first_lr if relative else decay,
            decay_beside=decay,
            sigma=felt.sigma,
            freshness=self.freshness,
            doubt=self.doubt,
        )
