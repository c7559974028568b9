"""An optimizer's state: packed for a checkpoint; read and checked as a whole, and only then assigned.

The emotion lies in each parameter group: a group may be left behind, the emotion may not. Everything is tensors, plain
numbers, strings, lists and dicts: `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from emo_hf.laws import saved as codec
from emo_hf.optim.average_tensors import dtype_of_average
from emo_hf.optim.precision.eight_bits import EIGHT_BITS, SIZES, SMALLEST, is_eight_bit
from emo_hf.optim.precision.saved import converted
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.sharding import is_sharded
from emo_hf.optim.state_keys import AVERAGE, COMPENSATION, SHADOW

if TYPE_CHECKING:
    from emo_hf.optim.optimizer import EmoOptimizer

EMOTION_KEY = "emotion"
FORMAT = 1
"""Raised by whatever an older version could not read, or would read wrongly. A state of another format is refused."""

COUNTS = "eight_bits"
"""Where the emotion carries, for a state with codes of 8 bits: [parameters in 8 bits, large ones in floats]."""

WHAT_TO_DO = "make the model and its groups as they were, or resume from the weights only"
SO_DO = WHAT_TO_DO[0].upper() + WHAT_TO_DO[1:]

logger = logging.getLogger(__name__)


def put_emotion(packed: Mapping[str, Any], emotion: Mapping[str, Any]) -> None:
    """Put an emotion into each parameter group of a packed state."""
    for group in packed["param_groups"]:
        group[EMOTION_KEY] = {"format": FORMAT, **emotion}


def pack(optimizer: Any, packed: dict[str, Any]) -> None:
    """Complete a state as torch packs it: the emotion, and what says how tensors are kept; a state-dict hook."""
    emotion = optimizer.emotion_state()
    if keeps_nothing(optimizer.rule):
        # torch looks for a tensor in a full state dict, to learn where ranks can meet, and takes no answer for none.
        emotion["device"] = torch.zeros(1, device=optimizer._facts.device)
    if _may_hold_codes(packed):
        emotion[COUNTS] = _count_codes(packed, optimizer.rule.eight_bit_state)
    put_emotion(packed, emotion)


def keeps_nothing(rule: Rule) -> bool:
    """Whether a rule is without state per parameter."""
    return not rule.new_state(torch.empty(1))


def emotion_in(groups: Sequence[Mapping[str, Any]]) -> Any:
    """What lies in parameter groups as their emotion; None if there is nothing."""
    return next((group[EMOTION_KEY] for group in groups if group.get(EMOTION_KEY)), None)


def find_emotion(groups: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The emotion that lies in saved parameter groups.

    Args:
        groups: those that are to be loaded.
        name: the optimizer's class.

    Raises:
        ValueError: if there is none, or it has another format.
    """
    found = emotion_in(groups)
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


def read(given: Any, optimizer: EmoOptimizer) -> Saved:
    """Read what `state_dict` gave, for an optimizer of which nothing is changed.

    Raises:
        ValueError: naming what does not fit, or is damaged, and what to do.
    """
    name, groups, rule = type(optimizer).__name__, optimizer.param_groups, optimizer.rule
    _check_is_state(given, name)
    if "state" not in given and keeps_nothing(rule):  # an empty one is lost where torch flattens states
        given = {"state": {}, **given}
    emotion = find_emotion(given["param_groups"], name)
    _check_owner(emotion, name, optimizer.version)
    values = (
        optimizer._engine.read_state(emotion), optimizer._average.read_state(emotion), _read_rule(emotion, rule)
    )  # fmt: skip
    _check_codes(given, emotion, rule.eight_bit_state)
    _check_groups(given["param_groups"], groups)
    given, change = converted(given, groups, optimizer._buckets.first_state)
    if change:
        logger.warning("the state was kept in another way when it was saved, and is brought over: %s", change)
    new_groups, states = [], {}
    for saved_group, group in zip(given["param_groups"], groups, strict=True):
        known = {key: value for key, value in saved_group.items() if key in group}
        try:
            options = optimizer._version.read_group(name, {**group, **known})
        except (ValueError, TypeError) as error:
            raise ValueError(f"a parameter group of this optimizer state is damaged: {error}") from error
        # What the group does not have may be a scheduler's initial_lr.
        new_groups.append({**saved_group, **options, "params": group["params"], EMOTION_KEY: None})
        for key, param in zip(saved_group["params"], group["params"], strict=True):
            if key in given["state"]:  # else it had no gradient so far
                states[param] = _read_tensors(given["state"][key], param, new_groups[-1], optimizer)
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


def _read_tensors(saved: Any, param: torch.Tensor, group: dict[str, Any], optimizer: EmoOptimizer) -> dict[str, Any]:
    """The state of one parameter, where that is, in the dtypes that it is kept in."""
    if not saved:
        return {}
    like = torch.empty_like(param, device="meta")
    plain = like if is_sharded(param) else torch.empty(param.shape, dtype=param.dtype, device="meta")
    wanted = optimizer._buckets.first_state(group, plain)
    state = {}
    for name in (*wanted, *(name for name in saved if name not in wanted)):
        value: Any = saved.get(name)
        if name == AVERAGE:
            if optimizer.keeps_average:
                state[name] = kept_average(value, param, optimizer._average.kept)
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


def kept_average(saved: Any, param: torch.Tensor, kept: bool | str) -> torch.Tensor:
    """A saved average of a parameter as it is kept here; see `WeightAverage`.

    Raises:
        ValueError: for what cannot be one.
    """
    _check_tensor(AVERAGE, saved, torch.empty(param.shape, device="meta"), param)
    if not is_sharded(saved) and not bool(saved.isfinite().all()):
        raise ValueError(f"the saved average of the weights is not finite. {SO_DO}")
    device = torch.device("cpu") if kept == "cpu" else param.device
    average: torch.Tensor = saved.to(device, dtype_of_average(param, kept))
    return average


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
    is_strided = saved.layout is torch.strided
    overlaps = is_strided and any(
        step == 0 and size > 1 for step, size in zip(saved.stride(), saved.shape, strict=True)
    )
    right_kind = saved.dtype is wanted.dtype or (saved.is_floating_point() and wanted.is_floating_point())
    if not is_strided or overlaps or not right_kind:
        kind = "expanded" if overlaps else f"{saved.layout}, {saved.dtype}"
        raise ValueError(
            f"this optimizer state is damaged: {name!r} must be a dense tensor of floating point numbers, each with "
            f"a place of its own, and is {kind}. {SO_DO}"
        )


def _may_hold_codes(state: Mapping[str, Any]) -> bool:
    return any(group.get("state") == EIGHT_BITS for group in state["param_groups"])


def _count_codes(state: Mapping[str, Any], names: frozenset[str]) -> list[int]:
    """Of how many parameters a state holds codes under one of these names, and of how many large ones floats."""
    kept = [next((of_one[name] for name in names if name in of_one), None) for of_one in state["state"].values()]
    tensors = [tensor for tensor in kept if isinstance(tensor, torch.Tensor)]
    in_floats = [tensor for tensor in tensors if not is_eight_bit(tensor)]
    return [len(tensors) - len(in_floats), sum(tensor.numel() >= SMALLEST for tensor in in_floats)]


def _check_codes(state: Mapping[str, Any], emotion: Mapping[str, Any], names: frozenset[str]) -> None:
    """Refuse a state whose codes of 8 bits have become floats on the way, or its floats codes.

    torch's checkpointing reads into tensors that are there: where those are floats and codes were saved, or the
    reverse, it turns one into the other as numbers, without a word. So a state says of how many parameters it holds
    which.
    """
    noted = emotion.get(COUNTS, [0, 0]) if _may_hold_codes(state) else [0, math.inf]
    found = _count_codes(state, names)
    if any(here > there for here, there in zip(found, noted, strict=True)) or _has_other_correction(state):
        raise ValueError(
            "this optimizer state was read into tensors of another kind than those that were saved: numbers of 8 bits "
            "have become floats, or floats such numbers, and what they stood for is gone. Distributed checkpoints, "
            "and full state dicts that rank 0 broadcasts, are read into the tensors of the optimizer: make it with "
            "the state= and compensate= that it was saved with (and where shards are the reason, with as many ranks), "
            "or load a full state dict on each rank, which is brought over"
        )


def _has_other_correction(state: Mapping[str, Any]) -> bool:
    for group in state["param_groups"]:
        for key in group["params"]:
            correction = state["state"].get(key, {}).get(COMPENSATION)
            if isinstance(correction, torch.Tensor) and group.get("compensate") == (
                True if is_eight_bit(correction) else EIGHT_BITS
            ):
                return True
    return False
