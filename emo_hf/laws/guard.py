"""Which losses are spikes, for the law `settle`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from emo_hf.laws import saved as codec

FIRST = 16  # losses before any is called a spike
REACH = 3.0  # times the greatest height that is remembered
SPREADS = 6.0  # mean deviations; 4.8 standard deviations of a Gaussian
MEMORY = 1.0 - 1.0 / 512.0
IN_A_ROW = 3.0
REGAIN = 0.1  # of a skip, for each step taken
HEIGHTS = 8  # of spikes, that are remembered
LIKE = 2.0  # heights within this factor of each other are alike


class Guard:
    """Tells spikes from what the losses of this run do anyway.

    With the center m (gain 0.1), the mean deviation d (gain 0.05), and the greatest height e above the center, slowly
    forgotten:

        spike:  L − m > max(3·e, 6·d), and none of the last 8 spikes was of a like height (half to twice)

    6·d alone would call a tenth of a heavy-tailed loss's high values spikes; 3·e asks for three times what has been
    seen. What comes a second time at a like height is data, rare and hard perhaps, and from then on it is e. A spike
    enters none of the averages. At most three in a row are called so, and one in ten in the long run: then the level
    of the loss has changed, and is learned anew.
    """

    saved_values: ClassVar[Mapping[str, codec.Reader]] = {
        "center": codec.finite,
        "deviation": codec.at_least_zero,
        "height": codec.at_least_zero,
        "seen": codec.count,
        "credit": codec.at_least_zero,
        "spikes": codec.numbers(HEIGHTS),
    }

    def __init__(self) -> None:
        self.center = self.deviation = self.height = 0.0
        self.seen = 0
        self.credit = IN_A_ROW
        self.spikes: list[float] = []  # heights of the last ones

    def is_spike(self, loss: float) -> bool:
        """Take in a loss, unless it is a spike."""
        above = loss - self.center
        limit = max(REACH * self.height, SPREADS * self.deviation) + 1e-9 * abs(self.center)
        is_known = any(above / LIKE <= height <= above * LIKE for height in self.spikes)
        if self.seen >= FIRST and above > limit and not is_known:
            self.spikes = [*self.spikes, above][-HEIGHTS:]
            if self.credit >= 1.0:
                self.credit -= 1.0
                return True
            self.seen = 0
        if self.seen == 0:
            self.center, self.deviation, self.height, above = loss, 0.0, 0.0, 0.0
        self.seen += 1
        self.height = max(above, MEMORY * self.height)
        self.deviation += max(0.05, 1.0 / self.seen) * (abs(above) - self.deviation)
        self.center += max(0.1, 1.0 / self.seen) * above
        self.credit = min(IN_A_ROW, self.credit + REGAIN)
        return False

    def state_dict(self) -> dict[str, Any]:
        """All of the state, as `saved_values` reads it."""
        return {**self.__dict__, "spikes": codec.filled(self.spikes, HEIGHTS)}
