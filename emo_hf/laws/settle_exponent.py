"""The exponent of a loss, and how fast a rate decays for it, for the law `settle`."""

from __future__ import annotations

from dataclasses import dataclass

from emo_hf.laws.settle_history import Trend

STEEPEST = 100.0  # what is steeper says no more
FLAT = 0.02
LEAVE = 2.0  # times what made it flat
CLEAR, STEEP = 0.2, 0.8
ANNEAL, MIDDLE, PATIENCE = 6.0, 0.45, 0.35


@dataclass(frozen=True, slots=True)
class Exponent:
    """p = F/(λ·S) and its standard error ε = e/(λ·S); L falls like t⁻ᵖ where it is far above 0.

    Attributes:
        p: the exponent.
        error: ε.
        learnt: whether more has been gained than is left.
        steps: how many steps it was seen in.
    """

    p: float
    error: float
    learnt: bool
    steps: int

    @classmethod
    def of(cls, trend: Trend, length: float, gained: float, noise: float) -> Exponent:
        """Of a trend over a window of log-length λ, in the scale S = max( min(|L|, D), D/10, s )."""
        size = abs(trend.level)
        scale = length * max(min(size, gained), gained / 10.0, noise) or 1.0
        p = min(max(trend.fall / scale, -STEEPEST), STEEPEST)
        return cls(p, min(trend.error / scale, STEEPEST), gained >= size, trend.steps)

    def is_flat(self, bound: float, was_flat: bool) -> bool:
        """Whether it does not fall, and the window is long enough to have shown a fall of that exponent."""
        limit = max(self.error, FLAT) * (LEAVE if was_flat else 1.0)
        return self.p <= limit and max(self.p, 0.0) + 2.0 * self.error <= bound

    def power(self) -> float:
        """q while the loss is not flat."""
        sure = self.p - 2.0 * self.error
        if self.learnt and self.p - self.error > STEEP:  # what falls so late so fast is being learnt by heart
            return MIDDLE
        return 0.0 if sure > CLEAR else PATIENCE if sure > FLAT else MIDDLE

    def __str__(self) -> str:
        return f"exponent {self.p:.2f} ± {self.error:.2f} in the last {self.steps} steps"
