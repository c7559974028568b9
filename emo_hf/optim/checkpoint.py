"""The emotion in a saved state, and whether that state belongs to the optimizer that it is loaded into.

Everything is checked before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.saved_codes import NOTE, count, is_noted
from emo_hf.optim.sharding import is_sharded
from emo_hf.optim.state_keys import AVERAGE, COMPENSATION, SHADOW
from emo_hf.optim.update import State

EMOTION_KEY = "emotion"
FORMAT = 1
"""Raised by whatever an older version could not read, or would read wrongly. A state of another format is refused;
options and notes for the logs that a state of this format lacks, as a newer version has more of them, take their
defaults."""

FIRST_VERSION = "v3.1"
"""The only generation that there was when states did not say theirs."""

WHAT_TO_DO = "make the model and its groups as they were, or resume from the weights only"


def pack_emotion(optimizer: Any, packed: dict[str, Any]) -> None:
    """Put the emotion of an optimizer into each parameter group of its packed state; a state-dict hook."""
    emotion = optimizer.emotion_state()
    if keeps_nothing(optimizer.rule):
        # torch looks for a tensor in a full state dict, to learn where ranks can meet, and takes no answer for none.
        emotion["device"] = torch.zeros(1, device=optimizer.param_groups[0]["params"][0].device)
    if is_noted(packed):
        emotion[NOTE] = count(packed, optimizer.rule.eight_bit_state)
    put_emotion(packed, emotion)


def keeps_nothing(rule: Rule) -> bool:
    """Whether a rule is without state per parameter."""
    return not rule.new_state(torch.empty(1))


def put_emotion(packed: dict[str, Any], emotion: Mapping[str, Any]) -> None:
    """Put an emotion into each parameter group of a packed state."""
    for group in packed["param_groups"]:
        group[EMOTION_KEY] = {"format": FORMAT, **emotion}


def find_emotion(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The emotion that lies in a saved state.

    Args:
        state: what is to be loaded.
        name: the optimizer's class.

    Raises:
        ValueError: if there is none, or it has another format.
    """
    saved: Mapping[str, Any] | None = next(
        (group[EMOTION_KEY] for group in state["param_groups"] if group.get(EMOTION_KEY)), None
    )
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
    return saved


def check_owner(saved: Mapping[str, Any], name: str, version: str, memory: Mapping[str, Any]) -> None:
    """Refuse the emotion of another optimizer or generation.

    Args:
        saved: what `find_emotion` found.
        name: the optimizer's class.
        version: its generation.
        memory: what its rule keeps once per optimizer.

    Raises:
        ValueError: naming both sides and what to do.
    """
    if saved.get("optimizer") != name:
        raise ValueError(
            f"this optimizer state was saved by {saved.get('optimizer')}, not by {name}: train on with "
            f"{saved.get('optimizer')}, or resume from the weights only"
        )
    theirs = saved.get("version", FIRST_VERSION)
    if theirs != version:
        raise ValueError(
            f"this optimizer state was saved by {name} {theirs}, not by {name} {version}: make the optimizer with "
            f"version={theirs}, or resume from the weights only"
        )
    if memory.keys() != (saved.get("rule") or {}).keys():
        raise ValueError(
            f"this optimizer state holds {sorted(saved.get('rule') or {})} for {name} as a whole, where it needs "
            f"{sorted(memory)}: it is damaged. {WHAT_TO_DO.capitalize()}"
        )


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


def with_present_names(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a saved parameter group by the names that they have now."""
    options = dict(group)
    if "compile" in options:
        options.setdefault("native", options.pop("compile"))
    return options


def check_fits(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[str, Any],
    first_state: Callable[[dict[str, Any], torch.Tensor], State],
    check_options: Callable[[Mapping[str, Any]], None],
) -> None:
    """Refuse the state of other parameter groups or other parameters, and options that no constructor would take.

    Args:
        groups: the parameter groups of the optimizer.
        state: what is to be loaded.
        first_state: makes the state of a parameter of a group before its first step.
        check_options: refuses the options of a group.

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
        options = {**group, **with_present_names(saved_group)}
        try:
            check_options(options)
        except ValueError as error:
            raise ValueError(f"a parameter group of this optimizer state is damaged: {error}") from error
        for key, param in zip(saved_group["params"], group["params"], strict=True):
            saved = state["state"].get(key)
            if not saved:  # without a gradient so far
                continue
            whole = torch.empty(param.shape, dtype=param.dtype, device="meta")
            like = torch.empty_like(param, device="meta") if is_sharded(param) else whole
            wanted = first_state(options, like)
            for name in wanted:
                _check_tensor(name, saved.get(name), wanted[name], param)
            for name in saved.keys() - wanted.keys():
                if name not in (SHADOW, COMPENSATION, AVERAGE):
                    raise ValueError(
                        f"this optimizer state has {name!r} for a parameter, which this optimizer does not know: it "
                        f"is of another optimizer, or damaged. {WHAT_TO_DO.capitalize()}"
                    )
                _check_tensor(name, saved[name], like, param)


def _check_tensor(name: str, saved: Any, wanted: torch.Tensor, param: torch.Tensor) -> None:
    if not isinstance(saved, torch.Tensor):
        raise ValueError(
            f"this optimizer state lacks {name!r} of a parameter: it is damaged. {WHAT_TO_DO.capitalize()}"
        )
    if is_sharded(param) or is_sharded(saved):
        return
    if saved.shape != wanted.shape:
        raise ValueError(
            f"this optimizer state is of other parameters: {name!r} has the shape {tuple(saved.shape)}, where a "
            f"parameter of shape {tuple(param.shape)} needs {tuple(wanted.shape)}. {WHAT_TO_DO.capitalize()}"
        )
    overlaps = saved.layout is torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(saved.stride(), saved.shape, strict=True)
    )
    right_kind = saved.dtype is wanted.dtype or (saved.is_floating_point() and wanted.is_floating_point())
    if saved.layout is not torch.strided or overlaps or not right_kind:
        kind = "expanded" if overlaps else f"{saved.layout}, {saved.dtype}"
        raise ValueError(
            f"this optimizer state is damaged: {name!r} must be a dense tensor of floating point numbers, each with "
            f"a place of its own, and is {kind}. {WHAT_TO_DO.capitalize()}"
        )


def _differ(saved: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    named = "name" in saved and "name" in here
    return len(saved["params"]) != len(here["params"]) or (named and saved["name"] != here["name"])


def _described(groups: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{group.get('name', f'group_{index}')} of {len(group['params'])} parameters"
        for index, group in enumerate(groups)
    )
