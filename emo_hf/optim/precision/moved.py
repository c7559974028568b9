"""Parameters that were moved to another device or dtype after their first step take their state along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from emo_hf.optim.precision.eight_bits import SIZES, is_eight_bit
from emo_hf.optim.precision.low import (
    LOW_PRECISION,
    first_compensation,
    put_back,
    refuse_float16_in_eight_bits,
)
from emo_hf.optim.state_keys import AVERAGE, COMPENSATION, SHADOW
from emo_hf.optim.update import State


def follow_parameters(
    params: list[torch.Tensor], states: list[State], group: Mapping[str, Any], float32_state: frozenset[str]
) -> None:
    """Bring the state of parameters to where they are now: some of them may have been moved, or all.

    The state of a parameter moves as a whole, so one look at its last tensor is enough, at every step: compensation
    and shadow, which follow the dtype in any case, come after what may stay in float32. A parameter that needs its
    compensation no longer, as it has become float32 say, takes up what is in it.

    Args:
        params: parameters of one device and dtype.
        states: their states, in their order.
        group: their group, whose options say whether state is kept in float32, and rounding compensated.
        float32_state: names of what is kept in float32 for bfloat16 and float16 parameters in any case.
    """
    device, dtype = params[0].device, params[0].dtype
    low = dtype in LOW_PRECISION
    in_float32, compensates = bool(group["compensate"] or group["state"]), low and bool(group["compensate"])
    for param, state in zip(params, states, strict=True):
        has_compensation = COMPENSATION in state
        if has_compensation and not compensates:
            put_back(param, state.pop(COMPENSATION))
        elif has_compensation:
            refuse_float16_in_eight_bits(param, is_eight_bit(state[COMPENSATION]))
        for key, value in reversed(state.items()):
            if is_eight_bit(value) or key.endswith(SIZES):
                if value.device == device:
                    break
                state[key] = value.to(device)
                continue
            if key == AVERAGE:  # the last; it is looked after by whoever keeps it
                continue
            wide = low and (key in float32_state or (in_float32 and key not in (COMPENSATION, SHADOW)))
            wanted = torch.float32 if wide else dtype
            if value.dtype is wanted and value.device == device:
                if wide:  # which says nothing of the dtype of the others
                    continue
                break
            state[key] = value.to(device=device, dtype=wanted)
        if compensates and not has_compensation:
            state[COMPENSATION] = first_compensation(param, group["compensate"])
