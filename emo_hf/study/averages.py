"""What a study needs of the average of the weights and of decisions: the only place that knows how it is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

from emo_hf.optim.family import family_names
from emo_hf.study.schema import ArmSpec

_AVERAGE_ALONE = {"start": False, "ease": False, "guard": False, "evaluations": False, "stop": False}


def with_average(arm: ArmSpec) -> ArmSpec:
    """The arm as it has to be given to the Trainer so that an average of its weights is kept."""
    if not arm.average:
        return arm
    if arm.optim in family_names() or arm.optim.startswith("emo_hf:"):
        law = {"emo_law": "settle", **_AVERAGE_ALONE} if arm.optim_args.get("emo_law") == "none" else {}
        return dataclasses.replace(arm, optim_args={**arm.optim_args, **law, "average_weights": True})
    if arm.emotion is None:
        return dataclasses.replace(arm, emotion="settle", emotion_args={**_AVERAGE_ALONE, "average_weights": True})
    return dataclasses.replace(arm, emotion_args={"average_weights": True, **arm.emotion_args})


def keeps_average(emo: Any) -> bool:
    """Whether an optimizer with an emotion, or what was attached to one, keeps an average."""
    return emo is not None and emo.decision.average is not None


def as_data(note: Any) -> dict[str, Any]:
    """A decision as plain values: step, kind, factor, reason."""
    if dataclasses.is_dataclass(note) and not isinstance(note, type):
        return dataclasses.asdict(note)
    step, text = note
    return {"step": step, "kind": text.partition(":")[0], "factor": 1.0, "reason": text.partition(":")[2].strip()}
