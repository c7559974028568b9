"""The laws that an optimizer's emotion may follow, by the name that `emo_law` takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from emo_hf.emotion.v3_1 import LONG_GAIN, Emotion

CANCELLATION_WEIGHT = 4.0
EIGHTH = 0.125  # exact in binary, and with it no sum of finite doubles overflows


class RobustEmotion(Emotion):
    """v3.1 for losses of any sign: policy gradients, contrastive objectives, log-likelihoods.

    v3.1 measures the change of the loss by its slow average. Losses that average to zero, or below it, leave it
    without a scale: σ sticks at ±1 and no step is taken. Here the scale is the slow average of the loss's size,
    enlarged where losses of both signs cancel:

        size ← 0.01·|L| + 0.99·size
        σ = tanh( (long − short) / (size + 4·(size − |long|)) )

    Losses above zero have size = long, and σ is that of v3.1 to the last bit (above its floor of 1e-5). Losses below
    zero are felt relative to their size, too, and losses that only scatter around zero as quiet (mean |σ| = 0.1). σ
    does not depend on the scale of the loss. Zeros before the first other loss have no size and are waited through.
    """

    law = "robust"

    def __init__(self) -> None:
        super().__init__()
        self._size = 0.0

    def _average(self, loss: float) -> None:
        if self._size == 0.0:
            self._short = self._long = loss
            self._size = abs(loss)
        else:
            super()._average(loss)
            self._size = LONG_GAIN * abs(loss) + (1.0 - LONG_GAIN) * self._size

    def _slope(self) -> float:
        short, long, size = EIGHTH * self._short, EIGHTH * self._long, EIGHTH * self._size
        scale = size + CANCELLATION_WEIGHT * (size - abs(long))
        return (long - short) / max(scale, sys.float_info.min)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "size": self._size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        size = state.get("size", 0.0)
        if state.get("law") == self.law and not isinstance(size, (int, float)):
            raise ValueError(f"the checkpoint's emotion is damaged: size is {size!r}")
        super().load_state_dict(state)
        self._size = float(size)


LAWS: dict[str, type[Emotion]] = {law.law: law for law in (Emotion, RobustEmotion)}


def law_named(name: str) -> type[Emotion]:
    """The law of a name.

    Raises:
        ValueError: for a name that no law has.
    """
    if name not in LAWS:
        raise ValueError(f"emo_law must be one of {', '.join(LAWS)}, got {name!r}")
    return LAWS[name]
