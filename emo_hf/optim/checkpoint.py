"""The emotion in a saved state, and whether that state belongs to the optimizer that it is loaded into.

Everything is checked before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from emo_hf.emotion.metrics import CoefficientWindow
from emo_hf.emotion.v3_1 import Emotion
from emo_hf.optim.rules.rule import State
from emo_hf.optim.tensors.dtensor import is_sharded

EMOTION_KEY = "emotion"
FORMAT = 1
"""Raised by whatever an older version could not read, or would read wrongly. A state of another format is refused;
options and notes for the logs that a state of this format lacks, as a newer version has more of them, take their
defaults."""

WHAT_TO_DO = "make the model and its groups as they were, or resume from the weights only"


def pack_emotion(optimizer: Any, packed: dict[str, Any]) -> None:
    """Put the emotion of an optimizer into each parameter group of its packed state; a state-dict hook."""
    emotion = {
        "format": FORMAT,
        "optimizer": type(optimizer).__name__,
        **optimizer._emotion.state_dict(),
        "coefficients": optimizer._coefficients.state(),
    }
    for group in packed["param_groups"]:
        group[EMOTION_KEY] = dict(emotion)


def read_emotion(state: Mapping[str, Any], name: str, law: Callable[[], Emotion]) -> tuple[Emotion, CoefficientWindow]:
    """The emotion of a saved state.

    Args:
        state: what is to be loaded.
        name: the optimizer's class.
        law: makes an emotion of the law that the optimizer follows.

    Raises:
        ValueError: if there is none, or it is of another optimizer, law or format, or damaged.
    """
    saved = next((group[EMOTION_KEY] for group in state["param_groups"] if group.get(EMOTION_KEY)), None)
    if saved is None:
        raise ValueError(
            f"this optimizer state holds no emotion, so it was not saved by {name}. To go on from the weights "
            "alone, load the model and leave the optimizer state out: the emotion then starts afresh"
        )
    found = saved.get("format")
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        raise ValueError(
            f"this optimizer state has format {found!r}, this version of emo_hf reads {FORMAT}: "
            f"{'update emo_hf' if newer else 'use the version that saved it'}, or resume from the weights only"
        )
    if saved.get("optimizer") != name:
        raise ValueError(
            f"this optimizer state was saved by {saved.get('optimizer')}, not by {name}: train on with "
            f"{saved.get('optimizer')}, or resume from the weights only"
        )
    emotion, coefficients = law(), CoefficientWindow()
    emotion.load_state_dict(saved)
    coefficients.load(saved.get("coefficients", coefficients.state()))
    return emotion, coefficients


def check_is_state(state: Any, optimizer: str) -> None:
    """Refuse what is not a torch optimizer's state at all.

    Raises:
        ValueError: naming what is missing.
    """
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not groups or "state" not in state or not all("params" in group for group in groups):
        raise ValueError(
            f"this is not the state of {optimizer}: a dict with `state` and `param_groups` is wanted, as state_dict() "
            "gives it. To go on without one, resume from the weights only"
        )


def check_fits(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[str, Any],
    first_state: Callable[[dict[str, Any], torch.Tensor], State],
) -> None:
    """Refuse the state of other parameter groups or other parameters.

    Args:
        groups: the parameter groups of the optimizer.
        state: what is to be loaded.
        first_state: makes the state of a parameter of a group before its first step.

    Raises:
        ValueError: naming both sides and what to do.
    """
    saved_groups = state["param_groups"]
    if len(saved_groups) != len(groups) or any(map(_differ, saved_groups, groups)):
        raise ValueError(
            f"this optimizer state is of other parameter groups (saved: {_described(saved_groups)}; here: "
            f"{_described(groups)}): {WHAT_TO_DO}"
        )
    for saved_group, group in zip(saved_groups, groups, strict=True):
        for key, param in zip(saved_group["params"], group["params"], strict=True):
            saved = state["state"].get(key)
            if not saved:  # without a gradient so far
                continue
            like = torch.empty(param.shape, dtype=param.dtype, device="meta")
            for name, wanted in first_state({**group, **saved_group}, like).items():
                _check_tensor(name, saved.get(name), wanted, param)


def _check_tensor(name: str, saved: Any, wanted: torch.Tensor, param: torch.Tensor) -> None:
    if not isinstance(saved, torch.Tensor):
        raise ValueError(
            f"this optimizer state lacks {name!r} of a parameter: it is damaged. {WHAT_TO_DO.capitalize()}"
        )
    if saved.shape != wanted.shape and not is_sharded(param) and not is_sharded(saved):
        raise ValueError(
            f"this optimizer state is of other parameters: {name!r} has the shape {tuple(saved.shape)}, where a "
            f"parameter of shape {tuple(param.shape)} needs {tuple(wanted.shape)}. {WHAT_TO_DO.capitalize()}"
        )


def _differ(saved: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    named = "name" in saved and "name" in here
    return len(saved["params"]) != len(here["params"]) or (named and saved["name"] != here["name"])


def _described(groups: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{group.get('name', f'group_{index}')} of {len(group['params'])} parameters"
        for index, group in enumerate(groups)
    )
