"""Guards that an arm can have in place of gradient clipping: both look at the norm of the gradients before a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WARM_UP = 25
"""Norms that a guard takes as they are, to know what is usual."""


class Guard(ABC):
    """Says what becomes of a step by the global norm g of its gradients."""

    def factor(self, norm: float) -> float | None:
        """What the gradients are multiplied by; None to skip the step, as for every norm that is not finite."""
        return self._of_finite(norm) if math.isfinite(norm) else None

    @abstractmethod
    def _of_finite(self, norm: float) -> float | None: ...


class ZClip(Guard):
    """ZClip (arXiv 2504.02507), z = 2.5 and α = 0.97.

        z_t = (g − μ) / σ
        z_t > z:    g* = μ + (z²/z_t)·σ, the gradients times g*/g;    else g* = g
        μ ← α·μ + (1 − α)·g*        σ² ← α·σ² + (1 − α)·(g* − μ)²

    μ and σ begin as mean and standard deviation of the first 25 norms. A norm that is not finite enters neither.
    """

    Z = 2.5
    ALPHA = 0.97

    def __init__(self) -> None:
        self.mean = self.variance = 0.0
        self._first: list[float] = []

    def _of_finite(self, norm: float) -> float:
        if len(self._first) < WARM_UP:
            self._first.append(norm)
            self.mean = sum(self._first) / len(self._first)
            self.variance = sum((first - self.mean) ** 2 for first in self._first) / len(self._first)
            return 1.0
        clipped, above = norm, norm - self.mean
        if above > self.Z * math.sqrt(self.variance):
            clipped = self.mean + self.Z**2 * self.variance / above  # (z²/z_t)·σ, without dividing by a σ of 0
        self.mean = self.ALPHA * self.mean + (1.0 - self.ALPHA) * clipped
        self.variance = self.ALPHA * self.variance + (1.0 - self.ALPHA) * (clipped - self.mean) ** 2
        return clipped / norm if clipped != norm else 1.0


class SkipHigh(Guard):
    """The plainest rule: a step is skipped when g is above 3 times the mean of the last 100 that were not.

    Where norms have risen to three times what they were for good, it never steps again.
    """

    TIMES = 3.0
    LAST = 100

    def __init__(self) -> None:
        self._taken: deque[float] = deque(maxlen=self.LAST)

    def _of_finite(self, norm: float) -> float | None:
        if len(self._taken) >= WARM_UP and norm > self.TIMES * sum(self._taken) / len(self._taken):
            return None
        self._taken.append(norm)
        return 1.0


GUARDS: Mapping[str, type[Guard]] = {"zclip": ZClip, "skip": SkipHigh}


class GuardCallback(TrainerCallback):
    """Has a guard look at the gradients right before each step, after the Trainer's own clipping.

    Args:
        guard: the guard.

    Attributes:
        skips: whether the step that is being taken, or was taken last, is skipped.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.skips = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        factor = self._guard.factor(global_norm([parameter.grad for parameter in parameters]))
        self.skips = factor is None
        for parameter in parameters:
            if factor is None:
                parameter.grad = None
            elif factor != 1.0:
                parameter.grad.mul_(factor)


def global_norm(gradients: Sequence[torch.Tensor]) -> float:
    """The Euclidean norm of all gradients together."""
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))
