"""Which losses are spikes, for the law `settle`."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 16  # losses before any is called a spike
REACH = 3.0  # times the highest excess that is remembered
SPREADS = 6.0  # mean deviations; 4.8 standard deviations of a Gaussian
MEMORY = 1.0 - 1.0 / 512.0
IN_A_ROW = 3.0
REGAIN = 0.1  # of a skip, for each step taken


@dataclass(slots=True)
class Guard:
    """Tells spikes from what the losses of this run do anyway.

    With center m (gain 0.1), mean deviation d (gain 0.05) and the highest excess e over the center, slowly forgotten:

        spike:  L − m > max(3·e, 6·d)

    The second alone would call a tenth of a heavy-tailed loss's high values spikes; the first asks for three times
    what has been seen, which the next loss after n like it exceeds with a probability of about 1/n³ where tails are
    exponential. A loss that is called a spike enters neither. At most three in a row are, and one in ten in the long
    run: then the level has changed, and is learned anew.
    """

    center: float = 0.0
    deviation: float = 0.0
    excess: float = 0.0
    seen: int = 0
    credit: float = IN_A_ROW

    def is_spike(self, loss: float) -> bool:
        """Take in a loss, unless it is a spike."""
        above = loss - self.center
        limit = max(REACH * self.excess, SPREADS * self.deviation) + 1e-9 * abs(self.center)
        if self.seen >= FIRST and above > limit:
            if self.credit >= 1.0:
                self.credit -= 1.0
                return True
            self.seen = 0
        if self.seen == 0:
            self.center, self.deviation, self.excess, above = loss, 0.0, 0.0, 0.0
        self.seen += 1
        self.excess = max(above, MEMORY * self.excess)
        self.deviation += max(0.05, 1.0 / self.seen) * (abs(above) - self.deviation)
        self.center += max(0.1, 1.0 / self.seen) * above
        self.credit = min(IN_A_ROW, self.credit + REGAIN)
        return False
