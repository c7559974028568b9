"""A saved state whose tensors are kept in another way than here: in 8 bits or floats, with or without compensation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from emo_hf.optim.precision.eight_bits import EIGHT_BITS, SIZES, decode, encode, is_eight_bit
from emo_hf.optim.sharding import distributed_like, whole
from emo_hf.optim.state_keys import COMPENSATION
from emo_hf.optim.update import State

HOW_IT_IS_KEPT = ("state", "compensate")
"""The options that say how tensors are kept: those of the optimizer count, not those of the saved state."""


def converted(
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    first_state: Callable[[dict[str, Any], torch.Tensor], State],
) -> tuple[dict[str, Any], str | None]:
    """A saved state, kept as the optimizer with these groups keeps it; ranks that share parameters load together.

    Args:
        saved: what `state_dict()` gave; one of other groups or parameters is returned as it is.
        groups: the parameter groups of the optimizer, with the parameters as they are in the model now.
        first_state: makes the state of a parameter of a group before its first step.

    Returns:
        The state, and what was changed in words, or None if nothing was.
    """
    if [len(group["params"]) for group in saved["param_groups"]] != [len(group["params"]) for group in groups]:
        return dict(saved), None
    changed = [
        f"{name}={there.get(name, default)} there, {name}={here[name]} here"
        for there, here in zip(saved["param_groups"], groups, strict=True)
        for name, default in zip(HOW_IT_IS_KEPT, (None, False), strict=True)
        if there.get(name, default) != here[name]
    ]
    if not changed and all(group["state"] != EIGHT_BITS for group in groups):
        return dict(saved), None
    new_groups, new_states, others = [], dict(saved["state"]), 0
    for there, here in zip(saved["param_groups"], groups, strict=True):
        new_groups.append({**there, **{name: here[name] for name in HOW_IT_IS_KEPT}})
        for key, param in zip(there["params"], here["params"], strict=True):
            if saved["state"].get(key):
                wanted = first_state({**there, **new_groups[-1]}, torch.empty_like(param, device="meta"))
                differs = _differ_in_bits(wanted, saved["state"][key])
                others += differs
                if changed or differs:
                    new_states[key] = _kept_as(wanted, saved["state"][key], param)
    if others and not changed:  # shards can be what makes the difference
        changed = [f"in 8 bits there and in floats here, or the reverse: {others} of the parameters"]
    return {**saved, "state": new_states, "param_groups": new_groups}, "; ".join(dict.fromkeys(changed)) or None


def _differ_in_bits(wanted: State, saved: Mapping[str, Any]) -> bool:
    return any(
        isinstance(saved.get(key), torch.Tensor) and is_eight_bit(saved[key]) is not is_eight_bit(tensor)
        for key, tensor in wanted.items()
    )


def _kept_as(wanted: State, saved: Mapping[str, Any], param: torch.Tensor) -> dict[str, Any]:
    """The state of one parameter, kept as another is, and dealt out as that is."""
    ours = {key for key in saved if key in wanted or key.endswith(SIZES)}
    saved = {
        key: whole(value) if key in ours and isinstance(value, torch.Tensor) else value for key, value in saved.items()
    }
    made = {key: value for key, value in saved.items() if not key.endswith(SIZES) and key != COMPENSATION}
    for key, value in list(made.items()):
        if not isinstance(value, torch.Tensor) or key not in wanted or value.shape != wanted[key].shape:
            continue  # that is not ours to mend: whoever checks the state will find it
        if is_eight_bit(value) and key + SIZES not in saved:
            continue
        in_float = decode(value, saved[key + SIZES]) if is_eight_bit(value) else value
        if is_eight_bit(wanted[key]):
            made[key], sizes = encode(in_float.float(), wanted[key].dtype, None)
            made[key + SIZES] = sizes.view(wanted[key + SIZES].shape)
        else:
            made[key] = in_float.to(wanted[key].dtype)
    if COMPENSATION in wanted:  # in another format it begins anew: half of a weight's last digit is lost, once
        rest, like = saved.get(COMPENSATION), wanted[COMPENSATION]
        is_kept = rest is not None and is_eight_bit(rest) is is_eight_bit(like)
        made[COMPENSATION] = rest if is_kept else torch.zeros_like(whole(param.detach()), dtype=like.dtype)
    # In the order of a first state: what belongs to a tensor follows it.
    made = {**{key: made[key] for key in wanted if key in made}, **made}
    return {key: distributed_like(value, wanted[key]) if key in wanted else value for key, value in made.items()}
