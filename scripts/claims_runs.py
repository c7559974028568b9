"""A run whose inside is written down, and that can be copied half-way and damaged: what examine_claims.py measures."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from emo_hf import FAMILY, EmoOptimizer
from emo_hf.laws.v3_1 import coefficient
from emo_hf.study.task import Task

MOMENTS = ("skewness", "kurtosis", "log skewness", "log kurtosis")
BASELINE = "AdamW"
FASTEST = 1.0 + 0.625
"""The largest factor that v3.1 knows."""


@dataclass(frozen=True)
class Setting:
    """A task, and how it is trained.

    Attributes:
        make: seed → the task.
        steps: of a run; half-way it is copied and damaged.
        rates: optimizer → learning rate, constant.
        claims: numbers of those that are examined on it.
    """

    make: Callable[[int], Task]
    steps: int
    rates: dict[str, float]
    claims: frozenset[str]


@dataclass(frozen=True)
class Arm:
    """What trains: an optimizer of the family or torch's AdamW, and what drives it.

    Attributes:
        optimizer: `EmoNavi`, … or `AdamW`.
        law: `v3.1`, `none` or `constant:…`; empty for AdamW.
        shadow: whether the slow copy of the weights is on.
    """

    optimizer: str
    law: str = ""
    shadow: bool = False

    def make(self, params: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        if self.optimizer == BASELINE:
            return torch.optim.AdamW(params, lr=lr)
        chosen = FAMILY[self.optimizer.lower()]
        return chosen(params, lr=lr, version="v3.1", emo_law=self.law, use_shadow=self.shadow)


@dataclass
class Trace:
    """One number a step.

    Attributes:
        loss: of the batch.
        factor: that multiplied the learning rate.
        felt: c that v3.1 makes of these losses, whether it was used or not.
        scalar: σ.
        step: max |Δw|/lr over all elements; without the weight decay, with c.
        moments: name → of the gradient.
    """

    loss: list[float] = field(default_factory=list)
    factor: list[float] = field(default_factory=list)
    felt: list[float] = field(default_factory=list)
    scalar: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    moments: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MOMENTS})


class Run:
    """A run of an arm: data and weights are those of the seed, whatever the arm is."""

    def __init__(self, setting: Setting, arm: Arm, seed: int) -> None:
        torch.manual_seed(seed)
        self.task = setting.make(seed)
        self.model = self.task.model.train()
        self.params = [param for param in self.model.parameters() if param.requires_grad]
        self.optimizer = arm.make(self.params, setting.rates[arm.optimizer])
        passes = (self.task.train_batches(seed + 7919 * again) for again in itertools.count())
        self.batches = list(itertools.islice(itertools.chain.from_iterable(passes), setting.steps))
        self.trace = Trace()
        self.done = 0

    def copy(self) -> Run:
        """The same run from here on, with a trace of its own."""
        other = copy.copy(self)
        other.model, other.params, other.optimizer = copy.deepcopy((self.model, self.params, self.optimizer))
        other.trace = Trace()
        return other

    def advance(self, steps: int, *, first_loss_times: float = 1.0, moments: bool = False) -> Trace:
        """Train on; the loss of the first step, and so its gradient, may be blown up."""
        for i in range(steps):
            loss = self.task.loss(self.model, self.batches[self.done]) * (first_loss_times if i == 0 else 1.0)
            self.optimizer.zero_grad()
            if isinstance(self.optimizer, EmoOptimizer):
                self.optimizer.observe(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            if moments:
                for name, value in gradient_moments(self.params).items():
                    self.trace.moments[name].append(value)
            self._step()
            self.trace.loss.append(loss.item())
            self.done += 1
        return self.trace

    def _step(self) -> None:
        before = [param.detach().clone() for param in self.params]
        self.optimizer.step()
        group = self.optimizer.param_groups[0]
        kept = 1.0 - group["lr"] * group["weight_decay"]
        moved = [(p.detach() - kept * old).abs().max() for p, old in zip(self.params, before, strict=True)]
        self.trace.step.append(torch.stack(moved).max().item() / group["lr"])
        if isinstance(self.optimizer, EmoOptimizer):
            decision = self.optimizer.decision
            self.trace.factor.append(decision.coefficient)
            self.trace.scalar.append(decision.scalar)
            self.trace.felt.append(coefficient(decision.scalar))

    @torch.no_grad()
    def end_loss(self) -> float:
        """On data that is held out."""
        self.model.eval()
        loss = self.task.evaluate(self.model)["loss"]
        self.model.train()
        return loss


def gradient_moments(params: Sequence[nn.Parameter]) -> dict[str, float]:
    """Skewness and excess kurtosis of all gradients' elements that are not 0, and of their log|g|."""
    whole = torch.cat([param.grad.flatten() for param in params if param.grad is not None]).double()
    whole = whole[whole != 0]
    return dict(zip(MOMENTS, (*shape_of(whole), *shape_of(whole.abs().log())), strict=True))


def shape_of(values: Tensor) -> tuple[float, float]:
    """Skewness E[z³] and excess kurtosis E[z⁴] − 3, with z = (x − mean)/standard deviation."""
    off = values - values.mean()
    z = off / off.square().mean().sqrt()
    return z.pow(3).mean().item(), z.pow(4).mean().item() - 3.0


@torch.no_grad()
def shake_weights(run: Run, share: float = 0.5) -> None:
    """Gaussian noise onto each trained tensor, of a share of its root mean square."""
    drawn = torch.Generator().manual_seed(run.done)
    for param in run.params:
        size = param.square().mean().sqrt()
        param.add_(torch.randn(param.shape, generator=drawn) * size, alpha=share)


@torch.no_grad()
def scale_state(run: Run, factor: float) -> None:
    """Multiply the optimizer's averages of gradients. Counts of steps and the shadow stay."""
    for state in run.optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() and name != "shadow":
                value.mul_(factor)


DAMAGES: dict[str, Callable[[Run], None]] = {
    "weights + noise of 0.5 RMS": shake_weights,
    "state × 100": lambda run: scale_state(run, 100.0),
    "state × 0": lambda run: scale_state(run, 0.0),
}


def step_bound(arm: Arm, params: Sequence[nn.Parameter], steps: int) -> float:
    """What |Δw|/lr cannot exceed, c included, whatever the gradients are (default betas).

    navi:  |m|/√v ≤ (1−β1)/√(1−β2) · √(Σ_{i<t} (β1²/β2)^i)            by Cauchy and Schwarz
    Adam:  that times √(1−β2^t)/(1−β1^t)
    fact:  r ≥ (1−β1)·|g|/√columns and k ≥ (1−β1)·|g|/√rows, so |u| ≤ elements^¼/(1−β1); vectors 1/√(1−β2)
    lynx:  1
    """
    b1, b2 = 0.9, 0.999
    fastest = FASTEST if arm.law == "v3.1" else 1.0
    if arm.optimizer == "EmoLynx":
        return fastest
    if arm.optimizer == "EmoFact":
        return fastest * max(p.numel() ** 0.25 / (1 - b1) if p.dim() > 1 else (1 - b2) ** -0.5 for p in params)
    most, total = 0.0, 0.0
    for t in range(1, steps + 1):
        total += (b1 * b1 / b2) ** (t - 1)
        corrected = math.sqrt(1 - b2**t) / (1 - b1**t) if arm.optimizer == BASELINE else 1.0
        most = max(most, (1 - b1) / math.sqrt(1 - b2) * math.sqrt(total) * corrected)
    return fastest * most


def adapter_shapes(model: nn.Module) -> list[dict[str, float]]:
    """Of each LoRA layer's ΔW = scaling·B·A: effective rank, stable rank, Frobenius norm.

    With singular values s and q = s²/Σs²: effective rank exp(−Σ q·ln q), stable rank Σs²/max s².
    """
    found = []
    for module in model.modules():
        if not hasattr(module, "lora_A"):
            continue
        layer: Any = module
        for name in layer.lora_A:
            delta = layer.scaling[name] * layer.lora_B[name].weight.detach() @ layer.lora_A[name].weight.detach()
            squares = torch.linalg.svdvals(delta.double()).square()
            q = squares / squares.sum()
            entropy = -torch.special.xlogy(q, q).sum()
            found.append(
                {
                    "effective rank": entropy.exp().item(),
                    "stable rank": (squares.sum() / squares.max()).item(),
                    "norm": squares.sum().sqrt().item(),
                }
            )
    return found
