"""Losses in; scalar, factors on the rate, shadow and stop signal out. One class a generation, by name in `LAWS`.

A law keeps every loss and every scalar there ever was, and computes all the rest from them anew at each step. Symbols:
L the loss of a step, σ the scalar, a = |σ|, τ = copysign(1 − a, σ) the trust.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Step:
    """What a law says of one step.

    The shadow is keep, pull and follow: p ← keep·p + pull·shadow, then shadow ← shadow + follow·(p − shadow), and
    before that the shadow is made of p where there is none; None leaves it alone, or unmade.
    """

    sigma: float = 0.0
    factor: float = 1.0  # on the learning rate of the step
    decay_factor: float = 1.0  # on the learning rate of the weight decay
    floor: float = 0.0  # the lowest rate that either may come to, where the learning rate is above 0
    shadow: tuple[float, float, float] | None = None
    stop_begins: bool = False  # the stop signal is on now and was off before

    def rate(self, lr: float) -> float:
        return 0.0 if lr == 0 else max(lr * self.factor, self.floor)

    def decay_rate(self, lr: float) -> float:
        return 0.0 if lr == 0 else max(lr * self.decay_factor, self.floor)


def average(losses: list[float], gain: float, *, from_a_sum: bool = False) -> float:
    """The average of a gain: the first loss, then gain·L + (1−gain)·average; 0 before there is a loss.

    From v3.6 on it begins with gain·L + (1−gain)·L, which may differ from L in the last bit.
    """
    result = losses[0] if losses else 0.0
    for loss in losses if from_a_sum else losses[1:]:
        result = gain * loss + (1 - gain) * result
    return result


def is_quiet(scalars: list[float]) -> bool:
    """Whether the last 32 scalars say that nothing happens any more."""
    window = scalars[-32:]
    mean = sum(window) / 32
    mean_size = sum(abs(sigma) for sigma in window) / 32
    variance = sum((sigma - mean) ** 2 for sigma in window) / 32
    return len(window) == 32 and mean_size < 0.05 and variance < 0.005


class ReferenceLaw:
    """The emotion of one optimizer. A law gives `sigma` and `say`, averages and stop signal if they differ."""

    from_a_sum = False  # how averages begin

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.scalars: list[float] = []
        self.should_stop = False

    def feel(self, loss: float | None) -> Step:
        """What is said of this step; a step without a finite loss is neutral and leaves no trace."""
        if loss is None or not math.isfinite(loss):
            return self.say(0.0)
        self.losses.append(loss)
        self.scalars.append(self.sigma)
        before, self.should_stop = self.should_stop, self.stops()
        return replace(self.say(self.scalars[-1]), stop_begins=self.should_stop and not before)

    @property
    def felt(self) -> list[float]:
        """The losses that the averages are of."""
        return self.losses

    @property
    def short(self) -> float:
        return average(self.felt, 0.3, from_a_sum=self.from_a_sum)

    @property
    def long(self) -> float:
        return average(self.felt, 0.01, from_a_sum=self.from_a_sum)

    @property
    def sigma(self) -> float:
        """σ of the losses so far; relative to the slow average, and above 0 while the loss improves."""
        return math.tanh((self.long - self.short) / max(self.long, 1e-5))

    def say(self, sigma: float) -> Step:
        """All that follows from σ."""
        raise NotImplementedError

    def stops(self) -> bool:
        """Quiet once, it stands for good."""
        return self.should_stop or is_quiet(self.scalars)


class V30(ReferenceLaw):
    """Always damp."""

    @property
    def sigma(self) -> float:
        return math.tanh(5 * (self.short - self.long))

    def say(self, sigma: float) -> Step:
        a = abs(sigma)
        return Step(sigma, 1 - a, shadow=(1 - a, a, 0.05) if a > 0.1 else None)


class V31(ReferenceLaw):
    """Accelerate while the loss improves, slow down while it worsens, brake on sudden change."""

    def say(self, sigma: float) -> Step:
        a, c = abs(sigma), 1.0
        if a > 0.625:
            c = 1 - a
        elif 0.125 < sigma <= 0.625 or -0.625 <= sigma < -0.125:
            c = 1 + sigma
        if a > 0.75:  # ρ = 0.75
            return Step(sigma, c, shadow=(1 - 0.75, c, 0))
        if 0.25 < a <= 0.75:  # ρ = −0.1
            return Step(sigma, c, shadow=(1, 0, 0.1))
        return Step(sigma, c, shadow=(1, 0, 0.1 * c))


class Robust(V31):
    """v3.1, with changes measured by how loud the loss is from the first not above zero on; waits for one not 0."""

    @property
    def felt(self) -> list[float]:
        first = next((index for index, loss in enumerate(self.losses) if loss != 0.0), len(self.losses))
        return self.losses[first:]

    @property
    def sigma(self) -> float:
        size = average([abs(loss) for loss in self.felt], 0.01)
        below = next((index for index, loss in enumerate(self.felt) if loss <= 0.0), None)
        if below is None:
            return super().sigma
        until = self.felt[: below + 1]
        loud = max(average([abs(loss) for loss in until], 0.01), abs(average(until, 0.3)))
        for loss in self.felt[below + 1 :]:
            loud = 0.3 * abs(loss) + 0.7 * loud if abs(loss) > loud else 0.01 * abs(loss) + 0.99 * loud
        return math.tanh((self.long - self.short) / max(loud + 4 * (size - abs(self.long)), 1e-5))


class V36(ReferenceLaw):
    """A boost in a middle zone, a brake above 0.75.

    Args:
        denominator: what the change is measured by: `published` (decided by the rounding of two products that would be
            equal otherwise), `long`, or `quieter`, whichever shows the smaller change.
        stop_scalar: what the stop signal looks at: `early`, the change relative to the long average, or `sigma`.
    """

    from_a_sum = True

    def __init__(self, denominator: str = "published", stop_scalar: str = "early") -> None:
        super().__init__()
        self.denominator = denominator
        self.stop_scalar = stop_scalar
        self.early_scalars: list[float] = []

    @property
    def medium(self) -> float:
        return average(self.losses, 0.05, from_a_sum=True)

    @property
    def sigma(self) -> float:
        base_long, base_medium = max(self.long, 1e-5), max(self.medium, 1e-5)
        x_long, x_medium = (self.long - self.short) / base_long, (self.long - self.short) / base_medium
        by_long, by_medium = math.tanh(x_long), math.tanh(x_medium)
        if abs(x_long) < 0.05 or self.denominator == "long":
            return by_long
        if self.denominator == "quieter":
            return by_medium if abs(x_medium) < abs(x_long) else by_long
        return by_medium if abs(x_medium) * base_medium < abs(x_long) * base_long else by_long

    def say(self, sigma: float) -> Step:
        a, drive = abs(sigma), 1.0
        if 0.25 < a < 0.5:
            drive = 8 * (1 - a) * (1 + 0.1 * math.copysign(1 - a, sigma))
        elif a > 0.75:
            drive = 1 - a
        return Step(sigma, drive, shadow=self.shadow(a))

    @staticmethod
    def shadow(a: float) -> tuple[float, float, float]:
        return (a, 1 - a, 0) if 0.625 < a < 1 else (1, 0, 0.1 * (1 - a))

    def stops(self) -> bool:
        self.early_scalars.append(super().sigma)
        looked_at = self.early_scalars if self.stop_scalar == "early" else self.scalars
        return self.should_stop or is_quiet(looked_at)


class V39(V36):
    """The rate is made from the loss; a step without a loss goes on with the factor that there is.

    Args:
        denominator: as for v3.6.
        stopcoef: the loss below which the stop signal may be given.
    """

    def __init__(self, denominator: str = "published", stopcoef: float = 0.04) -> None:
        super().__init__(denominator)
        self.stopcoef = stopcoef

    @property
    def rhythm(self) -> tuple[float, float, float, float]:
        """Noise, distance, chain and ratio."""
        n, d, e, h = 1.0, 0.02, 0.0, 1.0
        for sigma in self.scalars:
            a = abs(sigma)
            trust = math.copysign(1 - a, sigma)
            n = 0.97 * n + 0.03 * a
            d = 0.97 * d + 0.03 * abs(trust)
            e = 0.7 * e + 0.3 * sigma
            q = ((abs(max(n, 1e-10) - d) + 0.1) / (abs(sigma - trust) + 0.1)) ** 2
            if q >= h and trust >= 0.5:
                h = min(q, 1.5 * h)
            elif -0.5 <= trust <= 0.5:
                h = 0.8 * q
        return n, d, e, h

    def say(self, sigma: float) -> Step:
        _, _, e, h = self.rhythm
        f = min(h * max(100**e, 0.01) * 1e-4, 3e-3)
        return Step(sigma, f, f, 1e-8, self.shadow(abs(sigma)))

    def stops(self) -> bool:
        n, d, _, _ = self.rhythm
        return d - n >= 0.3 and max(self.medium, 1e-5) <= self.stopcoef


LAWS: dict[str, type[ReferenceLaw]] = {"v3.0": V30, "v3.1": V31, "robust": Robust, "v3.6": V36, "v3.9": V39}
