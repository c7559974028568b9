"""An optimizer's state: packed for a checkpoint; read and checked as a whole, and only then assigned.

The emotion lies in each parameter group: a group may be left behind, the emotion may not. Everything is tensors, plain
numbers, strings, lists and dicts: `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emo_hf.laws import saved as codec
from emo_hf.optim import average_tensors
from emo_hf.optim.average import WeightAverage
from emo_hf.optim.engine import EmotionEngine
from emo_hf.optim.precision.eight_bits import SIZES, is_eight_bit
from emo_hf.optim.precision.saved import kept_as_here
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.saved_codes import NOTE, check_codes, count, is_noted
from emo_hf.optim.sharding import is_sharded
from emo_hf.optim.state_keys import AVERAGE, COMPENSATION, SHADOW
from emo_hf.optim.update import State

EMOTION_KEY = "emotion"
FORMAT = 1
"""Raised by whatever an older version could not read, or would read wrongly. A state of another format is refused."""

WHAT_TO_DO = "make the model and its groups as they were, or resume from the weights only"
SO_DO = WHAT_TO_DO[0].upper() + WHAT_TO_DO[1:]

logger = logging.getLogger(__name__)

FirstState = Callable[[dict[str, Any], torch.Tensor], State]
"""Makes the state of a parameter of a group before its first step."""


def put_emotion(packed: Mapping[str, Any], emotion: Mapping[str, Any]) -> None:
    """Put an emotion into each parameter group of a packed state."""
    for group in packed["param_groups"]:
        group[EMOTION_KEY] = {"format": FORMAT, **emotion}


def pack(packed: dict[str, Any], emotion: dict[str, Any], rule: Rule, device: torch.device) -> None:
    """Complete a packed state: the emotion, and what says how its tensors are kept.

    Args:
        packed: as torch packs it.
        emotion: what `EmoOptimizer.emotion_state` gives.
        rule: the optimizer's rule.
        device: of the first parameter.
    """
    if keeps_nothing(rule):
        # torch looks for a tensor in a full state dict, to learn where ranks can meet, and takes no answer for none.
        emotion["device"] = torch.zeros(1, device=device)
    if is_noted(packed):
        emotion[NOTE] = count(packed, rule.eight_bit_state)
    put_emotion(packed, emotion)


def keeps_nothing(rule: Rule) -> bool:
    """Whether a rule is without state per parameter."""
    return not rule.new_state(torch.empty(1))


def find_emotion(groups: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The emotion that lies in saved parameter groups.

    Args:
        groups: those that are to be loaded.
        name: the optimizer's class.

    Raises:
        ValueError: if there is none, or it has another format.
    """
    found = next((group[EMOTION_KEY] for group in groups if group.get(EMOTION_KEY)), None)
    if found is None:
        raise ValueError(
            f"this optimizer state holds no emotion, so it was not saved by {name}. To go on from the weights "
            "alone, load the model and leave the optimizer state out: the emotion then starts afresh"
        )
    if not isinstance(found, Mapping):
        raise ValueError(f"this optimizer state is damaged: its emotion is a {type(found).__name__}. {SO_DO}")
    if found.get("format") != FORMAT:
        raise ValueError(
            f"this optimizer state has format {found.get('format')!r}, this version of emo_hf reads {FORMAT}: use the "
            "version that saved it, or resume from the weights only"
        )
    return found


@dataclass(frozen=True, slots=True)
class Saved:
    """A state that has been read and checked: assigning it cannot fail."""

    groups: list[dict[str, Any]]
    states: dict[torch.Tensor, dict[str, Any]]
    engine: Mapping[str, Any]
    average: Mapping[str, Any]
    rule: Mapping[str, Any]


def read(
    given: Any,
    *,
    groups: list[dict[str, Any]],
    name: str,
    version: str,
    rule: Rule,
    engine: EmotionEngine,
    average: WeightAverage,
    first_state: FirstState,
    read_options: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> Saved:
    """Read a saved state, for an optimizer that is made of the other arguments; nothing of it is changed.

    Args:
        given: what `state_dict` gave.
        groups: the optimizer's parameter groups.
        name, version, rule, engine, average: the optimizer's.
        first_state: makes the state of a parameter before its first step.
        read_options: checks the options of a group, and brings them to their types.

    Raises:
        ValueError: naming what does not fit, or is damaged, and what to do.
    """
    _check_is_state(given, name)
    if "state" not in given and keeps_nothing(rule):  # an empty one is lost where torch flattens states
        given = {"state": {}, **given}
    emotion = find_emotion(given["param_groups"], name)
    _check_owner(emotion, name, version)
    values = engine.read_state(emotion), average.read_state(emotion), _read_rule(emotion, rule)
    check_codes(given, emotion, rule.eight_bit_state)
    _check_groups(given["param_groups"], groups)
    given, change = kept_as_here(given, groups, first_state)
    if change:
        logger.warning("the state was kept in another way when it was saved, and is brought over: %s", change)
    new_groups, states = [], {}
    for saved_group, group in zip(given["param_groups"], groups, strict=True):
        try:
            options = read_options({**group, **{key: value for key, value in saved_group.items() if key in group}})
        except (ValueError, TypeError) as error:
            raise ValueError(f"a parameter group of this optimizer state is damaged: {error}") from error
        extra = {key: value for key, value in saved_group.items() if key not in group}  # a scheduler's initial_lr
        new_groups.append({**options, **extra, "params": group["params"], EMOTION_KEY: None})
        for key, param in zip(saved_group["params"], group["params"], strict=True):
            if key in given["state"]:  # else it had no gradient so far
                saved = given["state"][key]
                states[param] = _read_tensors(saved, param, new_groups[-1], first_state, average.kept)
    return Saved(new_groups, states, *values)


def _check_is_state(given: Any, name: str) -> None:
    groups = given.get("param_groups") if isinstance(given, Mapping) else None
    if (
        not isinstance(groups, (list, tuple))
        or not groups
        or not all(isinstance(group, Mapping) and isinstance(group.get("params"), (list, tuple)) for group in groups)
        or not isinstance(given.get("state", {}), Mapping)
        or not all(isinstance(of_one, Mapping) for of_one in given.get("state", {}).values())
    ):
        raise ValueError(
            f"this is not the state of {name}: a dict with `state` and `param_groups` is wanted, as state_dict() "
            "gives it. To go on without one, resume from the weights only"
        )


def _check_owner(emotion: Mapping[str, Any], name: str, version: str) -> None:
    theirs = emotion.get("optimizer"), emotion.get("version")
    if theirs[0] != name:
        raise ValueError(
            f"this optimizer state was saved by {theirs[0]}, not by {name}: train on with {theirs[0]}, or resume from "
            "the weights only"
        )
    if theirs[1] != version:
        raise ValueError(
            f"this optimizer state was saved by {name} {theirs[1]}, not by {name} {version}: make the optimizer with "
            f"version={theirs[1]}, or resume from the weights only"
        )


def _read_rule(emotion: Mapping[str, Any], rule: Rule) -> dict[str, float | None]:
    """What the rule keeps once per optimizer: numbers of at least 0, or None for what is not known yet."""
    # torch drops what is empty where it flattens a state.
    saved, wanted = emotion.get("rule", {}) if emotion.get("rule") is not None else {}, rule.memory()
    if not isinstance(saved, Mapping) or saved.keys() != wanted.keys():
        found = sorted(map(str, saved)) if isinstance(saved, Mapping) else saved
        raise ValueError(f"this optimizer state has {found} for the rule, which needs {sorted(wanted)}: {WHAT_TO_DO}")
    try:
        return {
            key: None if value is None and key in rule.unknown_at_first else codec.at_least_zero(value)
            for key, value in saved.items()
        }
    except ValueError as error:
        raise ValueError(f"this optimizer state is damaged, in what the rule keeps: {error}. {SO_DO}") from None


def _check_groups(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    def differ(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
        named = "name" in there and "name" in here
        return len(there["params"]) != len(here["params"]) or (named and there["name"] != here["name"])

    def described(groups: Sequence[Mapping[str, Any]]) -> str:
        named = ((group.get("name", f"group_{index}"), len(group["params"])) for index, group in enumerate(groups))
        return ", ".join(f"{name} of {count} parameters" for name, count in named)

    if len(saved) != len(groups) or any(map(differ, saved, groups)):
        raise ValueError(
            f"this optimizer state is of other parameter groups (saved: {described(saved)}; here: "
            f"{described(groups)}): {WHAT_TO_DO}"
        )


def _read_tensors(
    saved: Any, param: torch.Tensor, group: dict[str, Any], first_state: FirstState, average: bool | str
) -> dict[str, Any]:
    """The state of one parameter, where that is, in the dtypes that it is kept in."""
    if not saved:
        return {}
    like = torch.empty_like(param, device="meta")
    wanted = first_state(
        group, like if is_sharded(param) else torch.empty(param.shape, dtype=param.dtype, device="meta")
    )
    state = {}
    for name in (*wanted, *(name for name in saved if name not in wanted)):
        value: Any = saved.get(name)
        if name == AVERAGE:
            if average:
                average_tensors.check(value, param, SO_DO)
                device = torch.device("cpu") if average == "cpu" else param.device
                state[name] = value.to(device, average_tensors.dtype_of_average(param, average))
            continue
        if name not in wanted and name not in (SHADOW, COMPENSATION):
            raise ValueError(
                f"this optimizer state has {name!r} for a parameter, which this optimizer does not know: it is of "
                f"another optimizer, or damaged. {SO_DO}"
            )
        place = wanted.get(name, like)
        _check_tensor(name, value, place, param)
        codes = is_eight_bit(value) or name.endswith(SIZES)
        state[name] = value.to(param.device) if codes else value.to(param.device, place.dtype)
    return state


def _check_tensor(name: str, saved: Any, wanted: torch.Tensor, param: torch.Tensor) -> None:
    if not isinstance(saved, torch.Tensor):
        raise ValueError(f"this optimizer state lacks {name!r} of a parameter: it is damaged. {SO_DO}")
    if is_sharded(param) or is_sharded(saved):
        return
    if saved.shape != wanted.shape:
        raise ValueError(
            f"this optimizer state is of other parameters: {name!r} has the shape {tuple(saved.shape)}, where a "
            f"parameter of shape {tuple(param.shape)} needs {tuple(wanted.shape)}. {SO_DO}"
        )
    overlaps = saved.layout is torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(saved.stride(), saved.shape, strict=True)
    )
    right_kind = saved.dtype is wanted.dtype or (saved.is_floating_point() and wanted.is_floating_point())
    if saved.layout is not torch.strided or overlaps or not right_kind:
        kind = "expanded" if overlaps else f"{saved.layout}, {saved.dtype}"
        raise ValueError(
            f"this optimizer state is damaged: {name!r} must be a dense tensor of floating point numbers, each with "
            f"a place of its own, and is {kind}. {SO_DO}"
        )
