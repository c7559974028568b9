"""Parameters that were moved to another device or dtype after their first step take their state along."""

from __future__ import annotations

import torch

from emo_hf.optim.low_precision import COMPENSATION, LOW_PRECISION
from emo_hf.optim.shadow import SHADOW
from emo_hf.optim.step import State


def follow(params: list[torch.Tensor], states: list[State], compensate: bool) -> None:
    """Bring the state of parameters to where they are now.

    Models are moved as a whole, so one look at the first parameter is enough, at every step.

    Args:
        params: parameters of one device and dtype.
        states: their states, in their order.
        compensate: whether the state of bfloat16 and float16 parameters is kept in float32.
    """
    if _is_there(params[0], states[0], compensate):
        return
    for param, state in zip(params, states, strict=True):
        for key, value in state.items():
            state[key] = value.to(device=param.device, dtype=_dtype(key, param, compensate))


def _is_there(param: torch.Tensor, state: State, compensate: bool) -> bool:
    return all(
        value.device == param.device and value.dtype is _dtype(key, param, compensate) for key, value in state.items()
    )


def _dtype(key: str, param: torch.Tensor, compensate: bool) -> torch.dtype:
    wide = compensate and param.dtype in LOW_PRECISION and key not in (COMPENSATION, SHADOW)
    return torch.float32 if wide else param.dtype
