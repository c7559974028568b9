"""The law of v3.1 for losses of any sign."""

from __future__ import annotations

import sys

from emo_hf.emotion.law import LONG_GAIN
from emo_hf.emotion.v3_1 import V3_1

CANCELLATION_WEIGHT = 4.0
EIGHTH = 0.125  # exact in binary, and with it no sum of finite doubles overflows


class Robust(V3_1):
    """v3.1 for losses of any sign: policy gradients, contrastive objectives, log-likelihoods.

    v3.1 measures the change of the loss by its slow average. Losses that average to zero, or below it, leave it
    without a scale: σ sticks at ±1 and no step is taken. Here the scale is the slow average of the loss's size,
    enlarged where losses of both signs cancel:

        size ← 0.01·|L| + 0.99·size
        σ = tanh( (long − short) / (size + 4·(size − |long|)) )

    Losses above zero have size = long, and σ is that of v3.1 to the last bit (above its floor of 1e-5). Losses below
    zero are felt relative to their size, too, and losses that only scatter around zero as quiet (mean |σ| = 0.1). σ
    does not depend on the scale of the loss. Zeros before the first other loss have no size and are waited through.
    """

    name = "robust"
    numbers = {"size": 0.0}
    size: float

    def take_in(self, loss: float) -> None:
        if self.size == 0.0:
            self.short = self.long = loss
            self.size = abs(loss)
        else:
            super().take_in(loss)
            self.size = LONG_GAIN * abs(loss) + (1.0 - LONG_GAIN) * self.size

    def slope(self) -> float:
        short, long, size = EIGHTH * self.short, EIGHTH * self.long, EIGHTH * self.size
        scale = size + CANCELLATION_WEIGHT * (size - abs(long))
        return (long - short) / max(scale, sys.float_info.min)

    def complaint(self) -> str | None:
        return None
