"""Looking for a rate that moves the loss, for the law `settle`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emo_hf.emotion.settle_history import FIRST_BLOCK, History

BEGINNING = 4  # blocks that the first level is the mean of
SURE, VERY_SURE = 3.0, 4.0  # standard errors

FIRST_TRY = 64  # steps at the first rate; doubled while nothing moves
NEXT_TRY = 32  # steps at each rate once something moves
LONGEST_TRY = 512
RAISE_BLIND, RAISE_SEEING, LOWER = 3.0, 2.0, 1.0 / 3.0
STRAIGHT = 0.7  # of the fall of the first quarter of a window, in the last
PAYS = 1.2  # times the pace before the raise
VISIBLE, SHARE = 10.0, 0.05  # of s, and of |L|: progress that shows
HIGHEST, LOWEST = 1e3, 1e-3  # rates


@dataclass(slots=True)
class Start:
    """Where the run began, and what has been tried since.

    Attributes:
        level: mean of the first losses, once `known`.
        noise: standard deviation of one loss then.
        mark: losses heard when the present rate was set.
        moves: whether the loss has moved, by 3 standard errors.
        may_raise: whether the loss has never risen above its beginning.
        raises: how often the rate was raised.
        wait: steps until the next look.
        before: level before the last raise.
        pace: fall per step before the last raise, 0 if nothing moved.
        factor: of the last raise.
    """

    level: float = 0.0
    noise: float = 0.0
    mark: int = 0
    known: bool = False
    moves: bool = False
    may_raise: bool = True
    raises: int = 0
    wait: int = FIRST_TRY
    before: float = 0.0
    pace: float = 0.0
    factor: float = 1.0

    def know(self, history: History) -> bool:
        """Whether the first level is known, if only now."""
        if not self.known and len(history.means) >= BEGINNING:
            self.known, self.level, self.noise = True, history.mean(BEGINNING), history.noise
        return self.known

    def error(self, noise: float, steps: float) -> float:
        """Standard error of the difference between the first level and the mean of some steps."""
        return noise * math.sqrt(1.0 / (BEGINNING * FIRST_BLOCK) + 1.0 / steps)

    def has_risen(self, history: History, now: int) -> bool:
        """Whether the loss has risen above its beginning at the present rate, which then is too large."""
        steps = 2 * history.block
        if now - self.mark < steps or len(history.means) < 2:
            return False
        if history.mean(2) <= self.level + VERY_SURE * self.error(history.noise, steps):
            return False
        if not self.may_raise:  # lowered before: what falls again is given time
            has_waited = now - self.mark >= 2 * steps and len(history.means) >= 4
            if not has_waited or history.mean(2) < history.mean(2, before=2):
                return False
        self.may_raise, self.mark = False, now
        return True

    def look(self, history: History, now: int, rate: float) -> tuple[float, str, bool]:
        """What becomes of the rate.

        Returns:
            A factor on it; what there is to say, empty if nothing; whether the start is over.
        """
        if self.has_risen(history, now):
            lowest = rate * LOWER <= LOWEST
            return LOWER, "the loss has risen above its beginning", lowest
        tried = now - self.mark
        quarter = history.last(tried) // 4
        if tried < self.wait or quarter < 1:
            return 1.0, "", False
        first, second, third, fourth = (history.mean(quarter, before=quarter * n) for n in (3, 2, 1, 0))
        steps = quarter * history.block
        progress, pace = self.level - fourth, ((self.before if self.raises else self.level) - fourth) / tried
        trend = history.trend(len(history.means))
        error = max(trend.error, history.noise * math.sqrt(12.0 / trend.steps))
        self.moves = self.moves or progress > SURE * self.error(history.noise, steps) or trend.fall > SURE * error
        if self.moves:
            error = history.noise * math.sqrt(2.0 / steps)
            falls = first - fourth > SURE * error
            straight = falls and third - fourth >= STRAIGHT * (first - second) - error
            if not self.may_raise or not straight or progress > min(VISIBLE * self.noise, SHARE * abs(self.level)):
                return 1.0, "the loss falls", True
            if self.pace > 0.0 and pace < PAYS * self.pace:
                return (1.0 / self.factor if pace < self.pace else 1.0), "the last raise did not pay", True
        if not self.may_raise:
            self.mark = now
            return LOWER, f"nothing moves in {tried} steps, below a rate that was too large", rate * LOWER <= LOWEST
        if rate >= HIGHEST:
            return 1.0, "nothing moves at the highest rate", True
        self.factor = min(RAISE_SEEING if self.moves else RAISE_BLIND, HIGHEST / rate)
        self.pace = pace if self.moves else 0.0
        self.wait = NEXT_TRY if self.moves else min(2 * self.wait, LONGEST_TRY)
        self.raises, self.mark, self.before = self.raises + 1, now, fourth
        what = "the loss falls along a straight line" if self.moves else "nothing moves"
        return self.factor, f"{what} in {tried} steps", False
