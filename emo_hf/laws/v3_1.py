"""The law of v3.1."""

from __future__ import annotations

import math

from emo_hf.laws.decision import Decision, ShadowMix
from emo_hf.laws.law import Law, Zone

DENOMINATOR_FLOOR = 1e-5

ALARM = 0.625  # |σ| above: sudden change, damp hard whichever the direction
CALM = 0.125  # |σ| up to here: quiet, hands off

SATURATED_MEAN = 0.75  # |σ| that losses above zero do not keep up for 32 steps while they improve


class V3_1(Law):
    """The law of v3.1: speed up while the loss improves, slow down while it worsens, brake on sudden change.

        short ← 0.3·L  + 0.7·short            long ← 0.01·L + 0.99·long
        σ = tanh( (long − short) / max(long, 1e-5) )          above 0 while the loss improves

        |σ| > 0.625            c = 1 − |σ|
        0.125 < |σ| ≤ 0.625    c = 1 + σ
        |σ| ≤ 0.125            c = 1

    Stop signal: 32 scalars on end with mean(|σ|) < 0.05 and variance < 0.005; never taken back.

    Shadow, with ρ = 0.75 for |σ| > 0.75, −0.1 for 0.25 < |σ| ≤ 0.75, else 0:

        ρ > 0:  p ← (1 − ρ)·p + c·shadow
        ρ < 0:  shadow ← shadow + 0.1·(p − shadow)
        ρ = 0:  shadow ← shadow + 0.1·c·(p − shadow)

    Source: EmoNavi, EmoFact and EmoLynx v3.1 by muooon.
    """

    name = "v3.1"
    zones = (
        Zone(ALARM, 1.0, "sudden fall: brake", "brake"),
        Zone(CALM, ALARM, "improving: speed up", "boost"),
        Zone(-CALM, CALM, "quiet: hands off", "quiet"),
        Zone(-ALARM, -CALM, "worsening: slow down", "slow"),
        Zone(-1.0, -ALARM, "sudden rise: brake", "brake"),
    )

    def decide(self, loss: float) -> Decision:
        return decision_at(math.tanh(self.slope()))

    def slope(self) -> float:
        """How far the fast average lies below the slow one, on the scale of the loss."""
        return (self.long - self.short) / max(self.long, DENOMINATOR_FLOOR)

    def neutral(self) -> Decision:
        return decision_at(0.0)

    def complaint(self) -> str | None:
        # Losses above zero never look so, however fast they change: neither average of theirs falls below the floor.
        if min(self.short, self.long) >= DENOMINATOR_FLOOR or not SATURATED_MEAN < self.mean_size() <= 1.0:
            return None
        return (
            f"the loss lies around or below zero (averages {self.short:.3g} and {self.long:.3g} after "
            f"{self.observations} steps), where {self.name} has no scale for its changes: the steps are damped to "
            "almost nothing. Use emo_law='robust' (in the Trainer: optim_args=\"emo_law=robust\"), which is the same "
            "above zero."
        )


def decision_at(scalar: float) -> Decision:
    """The whole decision that follows from σ."""
    size = abs(scalar)
    c = 1.0 - size if size > ALARM else 1.0 + scalar if size > CALM else 1.0
    if size > 0.75:  # back towards the shadow, whose weight is c
        mix = ShadowMix(keep=0.25, pull=c, follow=0.0)
    else:
        mix = ShadowMix(keep=1.0, pull=0.0, follow=0.1 if size > 0.25 else 0.1 * c)
    return Decision(scalar, c, shadow=mix)
