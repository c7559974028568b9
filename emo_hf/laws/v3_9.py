"""The law of v3.9."""

from __future__ import annotations

import logging
import math

from emo_hf.laws.decision import Decision
from emo_hf.laws.law import Zone
from emo_hf.laws.v3_6 import DENOMINATOR, DENOMINATOR_FLOOR, ThreeAverages, shadow_mix
from emo_hf.reading import Option, boolean, number

FLOOR = 1e-8  # of the learning rate

logger = logging.getLogger(__name__)


class V3_9(ThreeAverages):
    """The law of v3.9: the learning rate is made from the loss, and the user's `lr` is a scale around 1.

    With σ and shadow of `ThreeAverages`, τ = copysign(1 − |σ|, σ), and noise n = 1, distance d = 0.02, chain e = 0,
    ratio h = 1 at the start:

        n ← 0.97·n + 0.03·|σ|          d ← 0.97·d + 0.03·|τ|          e ← 0.7·e + 0.3·σ
        q = ( ( |max(n, 1e-10) − d| + 0.1 ) / ( |σ − τ| + 0.1 ) )²
        q ≥ h and τ ≥ 0.5:             h ← min(q, 1.5·h)
        otherwise, −0.5 ≤ τ ≤ 0.5:     h ← 0.8·q
        f = min( h·max(100^e, 0.01)·1e-4, 3e-3 )
        η = max(lr·f, 1e-8)            the learning rate of this step and of its weight decay; 0 where lr is 0

    A step without a usable loss goes on with the f that there is.

    Stop signal, anew at each step: d − n ≥ 0.3 and max(medium, 1e-5) ≤ stopcoef, an absolute loss.

    Source: EmoSens, EmoAiry, EmoCats, EmoTion and EmoVoid v3.9 by muooon.
    """

    name = "v3.9"
    numbers = {"medium": 0.0, "noise": 1.0, "distance": 0.02, "chain": 0.0, "ratio": 1.0}
    options = {
        "denominator": DENOMINATOR,
        "stopcoef": Option(0.04, number(0), "loss below which the stop signal may be given"),
        "notify": Option(True, boolean, "write a line of log when the stop signal is given"),
    }
    zones = (
        Zone(0.5, 1.0, "sudden fall: reset", "brake"),
        Zone(0.0, 0.5, "improving: may grow", "boost"),
        Zone(-0.5, 0.0, "worsening: as it is", "quiet"),
        Zone(-1.0, -0.5, "sudden rise: reset", "brake"),
    )
    noise: float
    distance: float
    chain: float
    ratio: float
    stopcoef: float
    notify: bool

    def decide(self, loss: float) -> Decision:
        scalar = self.scalar()
        size = abs(scalar)
        trust = math.copysign(1.0 - size, scalar)
        self.noise = 0.97 * self.noise + 0.03 * size
        self.distance = 0.97 * self.distance + 0.03 * abs(trust)
        self.chain = 0.7 * self.chain + 0.3 * scalar
        quotient = ((abs(max(self.noise, 1e-10) - self.distance) + 0.1) / (abs(scalar - trust) + 0.1)) ** 2
        if quotient >= self.ratio and trust >= 0.5:
            self.ratio = min(quotient, 1.5 * self.ratio)
        elif -0.5 <= trust <= 0.5:
            self.ratio = 0.8 * quotient
        return self.decision_at(scalar)

    def decision_at(self, scalar: float) -> Decision:
        factor = min(self.ratio * max(100.0**self.chain, 0.01) * 1e-4, 3e-3)
        return Decision(scalar, factor, factor, FLOOR, shadow_mix(abs(scalar)))

    def signals_stop(self) -> bool:
        signal = self.distance - self.noise >= 0.3 and max(self.medium, DENOMINATOR_FLOOR) <= self.stopcoef
        if signal and not self.should_stop and self.notify:
            logger.warning(
                "v3.9 signals that training may stop: loss average %.4g, step %d", self.medium, self.observations
            )
        return signal
