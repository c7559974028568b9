"""What EmoTion and EmoVoid do once a step over all parameters of the first group, before any of them moves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def l1_norm(params: list[Tensor]) -> float:
    """G = Σ ‖p‖₁."""
    return sum((p.abs().sum() for p in params), torch.zeros((), dtype=torch.float64)).item()


@dataclass
class Freshness:
    """EmoTion's f: how much the weights have changed since the norm that it remembers.

    Attributes:
        least: β₃ = 1 − β1 of the constructor.
        true_norm: whether the norm itself is remembered, and not its product with its relative change, as published.
    """

    least: float
    true_norm: bool = False
    norm: float | None = None
    f: float = 1.0

    def look(self, params: list[Tensor]) -> None:
        now = l1_norm(params)
        if self.norm is None:
            self.norm = now
            return
        change = abs(now - self.norm) / (self.norm + 1e-8)
        self.f = max(math.tanh(change / 0.03), self.least)
        self.norm = now if self.true_norm else now * change


@dataclass
class Pull:
    """EmoVoid's warm-up: back to the norm that it remembers, but not while that is 0."""

    norm: float | None = None
    counter: int = 0

    def look(self, params: list[Tensor]) -> list[Tensor]:
        now = l1_norm(params)
        if self.norm and self.counter <= 55:
            gamma = self.norm / (now + 1e-8)
            params = [gamma * p for p in params]
            now = now * gamma
        self.norm = now
        self.counter += 1
        return params

    def stop_begins(self) -> None:
        self.counter = 55
