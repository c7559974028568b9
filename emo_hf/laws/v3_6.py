"""The law of v3.6."""

from __future__ import annotations

import math
from abc import abstractmethod

from emo_hf.laws.decision import Decision, ShadowMix
from emo_hf.laws.law import Law, Zone
from emo_hf.reading import Option, one_of

MEDIUM_GAIN = 0.05
DENOMINATOR_FLOOR = 1e-5
NEARLY_EQUAL = 0.05

DENOMINATOR = Option(
    "published",
    one_of("published", "long", "quieter"),
    "what the change of the loss is divided by: the long or the medium average, as rounding decides (published); the "
    "long one; or the one that gives the smaller change (quieter)",
)


class ThreeAverages(Law):
    """What v3.6 and v3.9 share: three averages, and a σ that measures the change by one of two of them.

        short, medium, long: averages of the loss with gains 0.3, 0.05, 0.01; each begins as gain·L + (1−gain)·L
        B_l = max(long, 1e-5)    x_l = (long − short)/B_l       B_m = max(medium, 1e-5)    x_m = (long − short)/B_m

        |x_l| < 0.05:                       σ = tanh(x_l)
        otherwise, `denominator=published`: σ = tanh(x_m) if |x_m|·B_m < |x_l|·B_l, else tanh(x_l)
                   `denominator=long`:      σ = tanh(x_l)
                   `denominator=quieter`:   the smaller of the two in size
        early scalar: tanh(x_l)             σ is above 0 while the loss improves

    Both sides of the published comparison are |long − short| but for rounding: a coin, which shows x_m in about one of
    twelve loud steps. It is reproduced here bit for bit.

        |σ| > 0.625:   p ← |σ|·p + (1−|σ|)·shadow          the shadow is not moved
        otherwise:     shadow ← shadow + 0.1·(1−|σ|)·(p − shadow)
    """

    numbers = {"medium": 0.0}
    options = {"denominator": DENOMINATOR}
    medium: float
    denominator: str

    def average(self, old: float, loss: float, gain: float) -> float:
        return gain * loss + (1.0 - gain) * (old if self.observations else loss)

    def take_in(self, loss: float) -> None:
        super().take_in(loss)
        self.medium = self.average(self.medium, loss, MEDIUM_GAIN)

    def scalar(self) -> float:
        """σ after the averages have taken in the loss."""
        by_long, by_medium = max(self.long, DENOMINATOR_FLOOR), max(self.medium, DENOMINATOR_FLOOR)
        change = self.long - self.short
        x_long, x_medium = change / by_long, change / by_medium
        if abs(x_long) < NEARLY_EQUAL or self.denominator == "long":
            return math.tanh(x_long)
        if self.denominator == "quieter":
            return math.tanh(min(x_long, x_medium, key=abs))
        return math.tanh(x_medium if abs(x_medium) * by_medium < abs(x_long) * by_long else x_long)

    @abstractmethod
    def decision_at(self, scalar: float) -> Decision:
        """The whole decision that follows from σ."""

    def neutral(self) -> Decision:
        return self.decision_at(0.0)


def shadow_mix(size: float) -> ShadowMix:
    """What v3.6 and v3.9 do with the shadow at |σ| = `size`."""
    if 0.625 < size < 1.0:
        return ShadowMix(keep=size, pull=1.0 - size, follow=0.0)
    return ShadowMix(keep=1.0, pull=0.0, follow=0.1 * (1.0 - size))


class V3_6(ThreeAverages):
    """The law of v3.6: a strong boost in a middle zone, a brake above 0.75.

        τ = copysign(1 − |σ|, σ)
        0.25 < |σ| < 0.5     D = 8·(1 − |σ|)·(1 + 0.1·τ)         6.45 … 4.2 improving, 5.55 … 3.8 worsening
        |σ| > 0.75           D = 1 − |σ|
        otherwise            D = 1

    D jumps from 1 to 6.45 at |σ| = 0.25, and boosts while the loss worsens, too. σ and shadow: see `ThreeAverages`.
    Stop signal as in v3.1, of the early scalar, or of σ with `stop_scalar=sigma`, as EmoFact and EmoLynx have it.

    Source: EmoNavi, EmoFact and EmoLynx v3.6 by muooon.
    """

    name = "v3.6"
    options = {
        "denominator": DENOMINATOR,
        "stop_scalar": Option("early", one_of("early", "sigma"), "which σ the stop signal looks at"),
    }
    zones = (
        Zone(0.75, 1.0, "sudden fall: brake", "brake"),
        Zone(0.5, 0.75, "falling fast: hands off", "quiet"),
        Zone(0.25, 0.5, "improving: boost", "boost"),
        Zone(-0.25, 0.25, "quiet: hands off", "quiet"),
        Zone(-0.5, -0.25, "worsening: boost", "boost"),
        Zone(-0.75, -0.5, "rising fast: hands off", "quiet"),
        Zone(-1.0, -0.75, "sudden rise: brake", "brake"),
    )
    stop_scalar: str

    def decide(self, loss: float) -> Decision:
        return self.decision_at(self.scalar())

    def decision_at(self, scalar: float) -> Decision:
        size, drive = abs(scalar), 1.0
        if 0.25 < size < 0.5:
            drive = 8.0 * (1.0 - size) * (1.0 + 0.1 * math.copysign(1.0 - size, scalar))
        elif size > 0.75:
            drive = 1.0 - size
        return Decision(scalar, drive, shadow=shadow_mix(size))

    def scalar_for_window(self, decision: Decision) -> float:
        early = math.tanh((self.long - self.short) / max(self.long, DENOMINATOR_FLOOR))
        return early if self.stop_scalar == "early" else decision.scalar
