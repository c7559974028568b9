"""Section 1 and 2 of SPEC.md: losses in, scalar, coefficient, shadow ratio and self-stop out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


def coefficient(sigma: float) -> float:
    """c(σ), row by row as the table has it."""
    if abs(sigma) > 0.625:
        return 1 - abs(sigma)
    if 0.125 < sigma <= 0.625:
        return 1 + sigma
    if -0.625 <= sigma < -0.125:
        return 1 + sigma
    return 1.0


def shadow_ratio(sigma: float) -> float:
    """ρ(σ)."""
    if abs(sigma) > 0.75:
        return 0.75
    if 0.25 < abs(sigma) <= 0.75:
        return -0.1
    return 0.0


def is_quiet(scalars: list[float]) -> bool:
    """Whether the last 32 scalars say that nothing happens any more."""
    window = scalars[-32:]
    if len(window) < 32:
        return False
    mean = sum(window) / 32
    mean_size = sum(abs(sigma) for sigma in window) / 32
    variance = sum((sigma - mean) ** 2 for sigma in window) / 32
    return mean_size < 0.05 and variance < 0.005


@dataclass
class ReferenceEmotion:
    """Keeps every scalar there ever was, and looks at all it needs anew each step."""

    short: float = 0.0
    long: float = 0.0
    scalars: list[float] = field(default_factory=list)
    should_stop: bool = False

    def feel(self, loss: float | None) -> float:
        """σ of this step; a step without a finite loss is neutral and leaves no trace."""
        if loss is None or not math.isfinite(loss):
            return 0.0
        if not self.scalars:
            self.short = self.long = loss
        else:
            self.short = 0.3 * loss + 0.7 * self.short
            self.long = 0.01 * loss + 0.99 * self.long
        sigma = math.tanh((self.long - self.short) / max(self.long, 1e-5))
        self.scalars.append(sigma)
        self.should_stop = self.should_stop or is_quiet(self.scalars)
        return sigma
