"""The law of v3.1 for losses of any sign."""

from __future__ import annotations

from emo_hf.laws.law import LONG_GAIN, SHORT_GAIN, WINDOW
from emo_hf.laws.v3_1 import DENOMINATOR_FLOOR, V3_1

CANCELLATION_WEIGHT = 4.0
EIGHTH = 0.125  # exact in binary, and with it no sum of finite doubles overflows

DUST = 1e-3  # a loss below this share of the loud ones says nothing beside them
DUST_GAIN = 0.03
DUST_TOLERATED = 0.5


class Robust(V3_1):
    """v3.1 for losses of any sign: policy gradients, contrastive objectives, log-likelihoods.

    v3.1 measures the change of the loss by its slow average. Losses that average to zero, or below it, leave it
    without a scale: σ sticks at ±1 and no step is taken. Here, from the first loss on that is not above zero, the
    scale is the size of the loss, which rises as fast as the fast average and falls slowly, enlarged where losses of
    both signs cancel, and never below v3.1's floor:

        size ← 0.01·|L| + 0.99·size
        loud ← γ·|L| + (1 − γ)·loud          γ = 0.3 if |L| > loud, else 0.01; begins as max(size, |short|)
        σ = tanh( (long − short) / max(loud + 4·(size − |long|), 1e-5) )

    While all losses are above zero σ is that of v3.1 to the last bit. Losses below zero are felt relative to their
    size, too, and losses that only scatter around zero as quiet (mean |σ| = 0.1). A leap is no more than σ = ±0.75,
    since the scale leaps along; what lies below it for a while is quiet, and not a fall to nothing. Zeros before the
    first other loss are waited through. Above the floor σ does not depend on the scale of the loss.

    Policy gradients with one update for each batch have losses of rounding errors (1e-8) with a rare large one, and
    gradients that have nothing to do with their size. The law counts how much of that there is, and says so:

        dust ← 0.03·[ |L| < max(loud, 1e-2)/1000 ] + 0.97·dust
    """

    name = "robust"
    numbers = {"size": 0.0, "loud": 0.0, "dust": 0.0}
    size: float
    loud: float
    dust: float

    def take_in(self, loss: float) -> None:
        if self.size == 0.0:
            self.short = self.long = loss
            self.size = abs(loss)
        else:
            super().take_in(loss)
            self.size = LONG_GAIN * abs(loss) + (1.0 - LONG_GAIN) * self.size
        if self.loud:
            gain = SHORT_GAIN if abs(loss) > self.loud else LONG_GAIN
            self.loud = gain * abs(loss) + (1.0 - gain) * self.loud
        elif loss <= 0.0:
            self.loud = max(self.size, abs(self.short))
        if self.loud:
            is_dust = abs(loss) < self._dust_below
            self.dust = DUST_GAIN * is_dust + (1.0 - DUST_GAIN) * self.dust

    @property
    def _dust_below(self) -> float:
        return max(DUST * self.loud, DENOMINATOR_FLOOR)

    def slope(self) -> float:
        if not self.loud:  # no loss so far but above zero, or zeros alone
            return super().slope()
        short, long, size, loud = (EIGHTH * value for value in (self.short, self.long, self.size, self.loud))
        scale = loud + CANCELLATION_WEIGHT * (size - abs(long))
        return (long - short) / max(scale, EIGHTH * DENOMINATOR_FLOOR)

    def complaint(self) -> str | None:
        if self.observations < WINDOW or self.dust <= DUST_TOLERATED:
            return None
        return (
            f"most losses are next to zero (below {self._dust_below:.1g}), as those of policy gradients are that make "
            "one update for each batch. Such a loss says nothing of progress: steps are taken at their own learning "
            "rate, but for those around a rare larger loss. emo_law='none' leaves these alone too."
        )
