"""How an arm with an average of its weights is given to the Trainer."""

from __future__ import annotations

import dataclasses

from emo_hf.optim.family import family_names
from emo_hf.study.schema import ArmSpec


def with_average(arm: ArmSpec) -> ArmSpec:
    """The arm as it has to be given to the Trainer so that an average of its weights is kept."""
    if not arm.average:
        return arm
    if arm.optim in family_names() or arm.optim.startswith("emo_hf:"):
        return dataclasses.replace(arm, optim_args={**arm.optim_args, "average_weights": True})
    return dataclasses.replace(
        arm, emotion=arm.emotion or "none", emotion_args={"average_weights": True, **arm.emotion_args}
    )
