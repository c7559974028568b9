"""Parameters that were moved to another device or dtype after their first step take their state along."""

from __future__ import annotations

import torch

from emo_hf.optim.rules.rule import State
from emo_hf.optim.tensors.low_precision import COMPENSATION, LOW_PRECISION
from emo_hf.optim.tensors.shadow import SHADOW


def follow(params: list[torch.Tensor], states: list[State], compensate: bool) -> None:
    """Bring the state of parameters to where they are now: some of them may have been moved, or all.

    The state of a parameter moves as a whole, so one look at its last tensor is enough, at every step: compensation
    and shadow, which follow the dtype in any case, come after what may stay in float32.

    Args:
        params: parameters of one device and dtype.
        states: their states, in their order.
        compensate: whether the state of bfloat16 and float16 parameters is kept in float32.
    """
    device, dtype = params[0].device, params[0].dtype
    wide = compensate and dtype in LOW_PRECISION
    for state in states:
        for key, value in reversed(state.items()):
            wanted = torch.float32 if wide and key not in (COMPENSATION, SHADOW) else dtype
            if value.dtype is wanted and value.device == device:
                break
            state[key] = value.to(device=device, dtype=wanted)
