"""Parameters that were moved to another device or dtype after their first step take their state along."""

from __future__ import annotations

import torch

from emo_hf.optim.state_keys import AVERAGE, COMPENSATION, SHADOW
from emo_hf.optim.tensors.eight_bits import SIZES, is_eight_bit
from emo_hf.optim.tensors.low_precision import LOW_PRECISION
from emo_hf.optim.update import State


def follow_parameters(
    params: list[torch.Tensor], states: list[State], compensate: bool, float32_state: frozenset[str]
) -> None:
    """Bring the state of parameters to where they are now: some of them may have been moved, or all.

    The state of a parameter moves as a whole, so one look at its last tensor is enough, at every step: compensation
    and shadow, which follow the dtype in any case, come after what may stay in float32.

    Args:
        params: parameters of one device and dtype.
        states: their states, in their order.
        compensate: whether the state of bfloat16 and float16 parameters is kept in float32.
        float32_state: names of what is kept in float32 for them in any case.
    """
    device, dtype = params[0].device, params[0].dtype
    low = dtype in LOW_PRECISION
    for state in states:
        for key, value in reversed(state.items()):
            if is_eight_bit(value) or key.endswith(SIZES):
                if value.device == device:
                    break
                state[key] = value.to(device)
                continue
            if key == AVERAGE:  # the last; it is looked after by whoever keeps it
                continue
            wide = low and (key in float32_state or (compensate and key not in (COMPENSATION, SHADOW)))
            wanted = torch.float32 if wide else dtype
            if value.dtype is wanted and value.device == device:
                break
            state[key] = value.to(device=device, dtype=wanted)
