"""What an optimizer says when something is wrong with its losses, and what to do about it."""

from __future__ import annotations

import warnings

from emo_hf.emotion.v3_1 import EmotionView

TO_THE_CALLER = 6
"""From here through `_decide`, `step` and torch's wrappers of it to the line that called `step()`."""


def warn_about_missing_loss(name: str) -> None:
    """Warn of a step without a loss.

    Args:
        name: the optimizer's class.
    """
    warnings.warn(
        f"{name}.step() was called without a loss, so the emotion feels nothing and the step is a neutral one "
        f"(coefficient 1). Show it the loss: call optimizer.observe(loss) before loss.backward(), or pass a "
        f"closure to step(). With accelerate or the Trainer, prepare the optimizer with the Accelerator and use "
        f"accelerator.backward(loss): then the loss arrives by itself.",
        RuntimeWarning,
        stacklevel=TO_THE_CALLER,
    )


def warn_about_saturation(name: str, emotion: EmotionView) -> None:
    """Warn of losses for which the law has no scale.

    Args:
        name: the optimizer's class.
        emotion: what it has come to.
    """
    warnings.warn(
        f"{name}: the loss lies around or below zero (averages {emotion.short:.3g} and {emotion.long:.3g} after "
        f"{emotion.observations} steps), where v3.1 has no scale for its changes: the steps are damped to almost "
        "nothing. Use emo_law='robust' (in the Trainer: optim_args=\"emo_law=robust\"), which is the same above zero.",
        RuntimeWarning,
        stacklevel=TO_THE_CALLER,
    )
