"""Several groups of parameters and one emotion, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.reference.laws import LAWS, Nothing, Step
from tests.reference.once_per_optimizer import Freshness, Pull
from tests.reference.rules import RULES, Numbers, State

BY_SIGMA = {("EmoFact", "v3.6"), ("EmoLynx", "v3.6")}  # whose stop signal looks at σ
RELATIVE_DECAY = {("EmoLynx", "v3.0"), ("EmoNeco", "v3.0"), ("EmoClan", "v3.0")}


@dataclass(frozen=True)
class Options:
    """The options of one parameter group, by the names of the papers.

    Attributes:
        first_lr: the constructor's learning rate, lr₀, that `decoupled_weight_decay` divides by.
    """

    lr: float
    wd: float
    beta1: float
    beta2: float
    eps: float
    lynx_betas: tuple[float, float] = (0.9, 0.99)
    decoupled_weight_decay: bool = False
    first_lr: float = 1e-3


@dataclass
class ReferenceGroup:
    params: list[Tensor]
    options: Options
    use_shadow: bool = False
    maximize: bool = False
    states: list[State] = field(default_factory=list)


class ReferenceOptimizer:
    """Does what the optimizer of a class name and a version should do; `group.params` are replaced at every step.

    The options of a group may be changed between steps, as a scheduler does it.

    Args:
        name: of the class.
        version: the generation.
        groups: the parameter groups.
        dtype: what to compute in.
        law: the law, if not the generation's own; `none` feels as its own does, and does nothing.
        law_options: for the law.
        remember_true_norm: EmoTion with its slip mended.
        beta1: of the constructor, for EmoTion; the first group's if it is left out.
        doubt: below which share of its terms the sign of a sum is not to be compared.
    """

    def __init__(
        self,
        name: str,
        version: str,
        groups: list[ReferenceGroup],
        dtype: torch.dtype = torch.float64,
        *,
        law: str | None = None,
        law_options: dict[str, Any] | None = None,
        remember_true_norm: bool = False,
        beta1: float | None = None,
        doubt: float = 1e-3,
    ) -> None:
        self.rule = RULES[name, version]
        self.relative_decay = (name, version) in RELATIVE_DECAY
        self.groups = groups
        self.dtype = dtype
        for group in groups:
            group.params = [p.detach().to(dtype).clone(memory_format=torch.contiguous_format) for p in group.params]
            group.states = [{} for _ in group.params]
        chosen = version if law in (None, "none") else law
        preset = {"stop_scalar": "sigma"} if chosen == version and (name, version) in BY_SIGMA else {}
        self.emotion = LAWS[chosen](**{**preset, **(law_options or {})})
        self.feel = Nothing(self.emotion).feel if law == "none" else self.emotion.feel
        self.doubt = doubt
        least = 1 - (groups[0].options.beta1 if beta1 is None else beta1)
        self.freshness = Freshness(least, remember_true_norm) if name == "EmoTion" else None
        self.pull = Pull() if name == "EmoVoid" else None

    def step(self, loss: float | None, gradients: list[list[Tensor | None]]) -> None:
        """Feel the loss, then move every parameter that has a gradient."""
        felt = self.feel(loss)
        first = self.groups[0]
        if self.freshness is not None and first.options.lr:  # at a rate of 0 nothing moves, and nothing is counted
            self.freshness.look(first.params)
        if self.pull is not None and first.options.lr:
            first.params = self.pull.look(first.params)
        for group, row in zip(self.groups, gradients, strict=True):
            numbers = self.numbers(group.options, felt)
            for index, gradient in enumerate(row):
                if gradient is None or gradient.numel() == 0:
                    continue
                p, state, g = group.params[index], group.states[index], gradient.to(self.dtype).contiguous()
                if group.maximize:
                    g = -g
                if group.use_shadow:
                    p, shadow = felt.shadow(p, state.get("shadow"))
                    if shadow is not None:
                        state["shadow"] = shadow
                group.params[index] = self.rule(p, g, state, numbers)
        if self.pull is not None and felt.stop_begins:
            self.pull.stop_begins()

    def numbers(self, o: Options, felt: Step) -> Numbers:
        """The numbers of this step for a group."""
        decay = felt.decay_rate(o.lr) * o.wd
        relative = self.relative_decay and o.decoupled_weight_decay
        return Numbers(
            rate=felt.rate(o.lr),
            decay=decay / o.first_lr if relative else decay,
            decay_beside=decay,
            beta1=o.beta1,
            beta2=o.beta2,
            eps=o.eps,
            sigma=felt.sigma,
            lynx_betas=o.lynx_betas,
            freshness=self.freshness.f if self.freshness is not None else 1.0,
            doubt=self.doubt,
        )
