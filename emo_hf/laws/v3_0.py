"""The law of v3.0."""

from __future__ import annotations

import math

from emo_hf.laws.decision import Decision, ShadowMix
from emo_hf.laws.law import Law, Zone


class V3_0(Law):
    """The law of v3.0: any change of the loss damps the step.

        σ = tanh( 5·(short − long) )          above 0 while the loss gets worse
        c = 1 − |σ|

    with the averages of v3.1. σ is not relative to the loss: while a loss of 3 falls, c stays near 0; a loss below
    0.01 is never felt. Stop signal as in v3.1, with one σ a step.

    Shadow, where |σ| > 0.1 (else it is neither made nor moved):

        p ← (1 − |σ|)·p + |σ|·shadow          then shadow ← shadow + 0.05·(p − shadow)

    Source: EmoNavi, EmoFact, EmoLynx, EmoClan, EmoZeal and EmoNeco v3.0 by muooon.
    """

    name = "v3.0"
    zones = (
        Zone(0.6, 1.0, "sudden rise: brake", "brake"),
        Zone(0.1, 0.6, "worsening: slow down", "slow"),
        Zone(-0.1, 0.1, "quiet", "quiet"),
        Zone(-0.6, -0.1, "improving: slow down", "slow"),
        Zone(-1.0, -0.6, "sudden fall: brake", "brake"),
    )

    def decide(self, loss: float) -> Decision:
        scalar = math.tanh(5.0 * (self.short - self.long))
        size = abs(scalar)
        shadow = ShadowMix(keep=1.0 - size, pull=size, follow=0.05) if size > 0.1 else None
        return Decision(scalar, 1.0 - size, shadow=shadow)
