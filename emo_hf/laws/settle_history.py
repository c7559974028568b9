"""What the law `settle` remembers of the losses: means of blocks, as many in a long run as in a short one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

BLOCKS = 64
FIRST_BLOCK = 4  # steps
NOISE_GAIN = 0.02
HUGE = 1e100  # squares of it are finite


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through the last blocks.

    Attributes:
        level: mean loss.
        fall: how far the line falls from end to end, above 0 while the loss falls.
        error: standard error of `fall`, from what the blocks scatter around the line.
        scatter: standard deviation of a block around the line.
        steps: how many steps they cover.
    """

    level: float
    fall: float
    error: float
    scatter: float
    steps: int


@dataclass(slots=True)
class History:
    """Means of up to 64 blocks of the same number of steps; when they are full, neighbours are joined.

    A block is thus always between 1/64 and 1/32 of what is remembered: windows and noise are judged in shares of the
    run, whatever its length. Blocks that scatter more than single losses explain (a loss that wanders) say so in the
    standard error, which neighbouring losses would hide.

        v ← v + γ·((Lₜ − Lₜ₋₁)²/2 − v)        noise s = √v, free of any trend

    Attributes:
        block: steps a block.
        means: means of the blocks.
        total: sum of the block that is being filled.
        count: its losses so far.
        previous: the loss before.
        variance: v.
        differences: how many differences v has seen.
    """

    block: int = FIRST_BLOCK
    means: list[float] = field(default_factory=list)
    total: float = 0.0
    count: int = 0
    previous: float = 0.0
    variance: float = 0.0
    differences: int = -1  # the first loss makes none

    def add(self, loss: float) -> bool:
        """Take in a loss; whether it has filled a block."""
        if self.differences >= 0:
            gain = max(1.0 / (self.differences + 1), NOISE_GAIN)
            self.variance += gain * ((loss - self.previous) ** 2 / 2.0 - self.variance)
        self.differences += 1
        self.previous = loss
        self.total += loss
        self.count += 1
        if self.count < self.block:
            return False
        self.means.append(self.total / self.count)
        self.total, self.count = 0.0, 0
        if len(self.means) == BLOCKS:
            self.means = [
                (first + second) / 2.0 for first, second in zip(self.means[::2], self.means[1::2], strict=True)
            ]
            self.block *= 2
        return True

    def forget(self) -> None:
        """Begin anew, but for the noise."""
        self.block, self.means, self.total, self.count = FIRST_BLOCK, [], 0.0, 0

    @property
    def noise(self) -> float:
        """Standard deviation s of one loss."""
        return math.sqrt(self.variance)

    def last(self, steps: float) -> int:
        """How many whole blocks the last `steps` steps hold."""
        return min(int(steps) // self.block, len(self.means))

    def mean(self, blocks: int, before: int = 0) -> float:
        """Mean of the last blocks, or of as many before the last `before`."""
        end = len(self.means) - before
        return sum(self.means[end - blocks : end]) / blocks

    def trend(self, blocks: int, before: int = 0) -> Trend:
        """The line of least squares through that many blocks, at least 3."""
        end = len(self.means) - before
        means = self.means[end - blocks : end]
        level, middle = sum(means) / blocks, (blocks - 1) / 2.0
        spread = blocks * (blocks * blocks - 1) / 12.0
        slope = sum((place - middle) * (mean - level) for place, mean in enumerate(means)) / spread
        squares = sum((mean - level - slope * (place - middle)) ** 2 for place, mean in enumerate(means))
        variance = squares / (blocks - 2)
        return Trend(
            level, -slope * blocks, blocks * math.sqrt(variance / spread), math.sqrt(variance), blocks * self.block
        )
