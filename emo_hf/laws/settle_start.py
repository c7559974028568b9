"""Looking for a rate that moves the loss, for the law `settle`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emo_hf.laws.settle_history import FIRST_BLOCK, History

BEGINNING = 4  # blocks that the first level is the mean of
PERHAPS, SURE, VERY_SURE = 1.5, 3.0, 4.0  # standard errors

FIRST_LOOK = 64  # steps at a rate before anything is said of it
FIRST_TRY, LONGEST_TRY = 128, 512  # steps at a rate before it is raised; doubled each time
RAISE, LOWER = 3.0, 1.0 / 3.0
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
        wait: steps until the next look.
    """

    level: float = 0.0
    noise: float = 0.0
    mark: int = 0
    known: bool = False
    moves: bool = False
    may_raise: bool = True
    wait: int = FIRST_TRY

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
        if tried < FIRST_LOOK or quarter < 1:
            return 1.0, "", False
        steps, level = quarter * history.block, history.mean(quarter)
        trend = history.trend(len(history.means))
        error = max(trend.error, history.noise * math.sqrt(12.0 / trend.steps))
        # In standard errors: the last quarter below the beginning, the end of the line below its start.
        fallen = max((self.level - level) / (self.error(history.noise, steps) or 1.0), trend.fall / (error or 1.0))
        if fallen > SURE:
            self.moves = True
            return 1.0, "the loss falls", True
        if tried < self.wait:
            return 1.0, "", False
        self.wait = min(2 * self.wait, LONGEST_TRY)
        if fallen > PERHAPS:
            return 1.0, "", False
        self.mark = now
        if not self.may_raise:
            return LOWER, f"nothing moves in {tried} steps, below a rate that was too large", rate * LOWER <= LOWEST
        if rate >= HIGHEST:
            return 1.0, "nothing moves at the highest rate", True
        return min(RAISE, HIGHEST / rate), f"nothing moves in {tried} steps", False
