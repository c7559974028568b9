"""How much the weights after a step count in their average, for the law `settle`.

With the k-th sample of the weights w, one in each t/512 … t/256 steps:

    w̄ ← w̄ + 8/(k + 7)·(w − w̄)
"""

from __future__ import annotations

POWER = 8  # weights of the age t enter the average with t⁷, so that it lags by a ninth of the age
SAMPLES = 256  # of the weights that are in the average, at least, once there are so many


def share_of_weights(age: int) -> float:
    """What the weights after a step have of their average: 8/(k + 7) for the k-th sample, 0 for those that are none.

    Args:
        age: losses heard since the average began, that of the step among them; at least 1.
    """
    every = max(1 << (age // SAMPLES).bit_length() >> 1, 1)  # steps: a power of two
    return 0.0 if age % every else POWER / (age // every + POWER - 1)
