"""bfloat16 and float16 parameters: arithmetic in float32, and an option that loses no small update.

A bfloat16 has 8 significant bits: an update below 0.2 % of its parameter is rounded away, step after step. With
`compensate=True` each such parameter has one more tensor of its own dtype for what rounding took from it, so that the
two together carry 16 bits (22 with float16), and the rest of its state is kept in float32. The bytes of state per
element are then 10 for EmoNavi, 6 for EmoLynx and 2 (and the rows and columns) for EmoFact, instead of 4, 2 and 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from emo_hf.optim.state_keys import COMPENSATION, SHADOW
from emo_hf.optim.tensors.chunking import bounded
from emo_hf.optim.update import Hyperparameters, Implementation, State

LOW_PRECISION = (torch.bfloat16, torch.float16)

ELEMENTS_IN_CACHES = 1 << 18
ELEMENTS_ON_DEVICE = 1 << 22
"""What is held in float32 at once; with a rule that is not elementwise, at least one parameter."""


def in_float32(update: Implementation, *, elementwise: bool, on_cpu: bool) -> Implementation:
    """`update` on float32 copies; what does not fit into the parameter goes into its compensation, if it has one."""

    def run(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        wide = [param.detach().float() for param in params]
        wide_states = [
            {key: value.float() for key, value in state.items() if key not in (COMPENSATION, SHADOW)}
            for state in states
        ]
        for copy, state in zip(wide, states, strict=True):
            if COMPENSATION in state:
                copy.add_(state[COMPENSATION])
        update(wide, [grad.float() for grad in grads], wide_states, h)
        for param, copy, state, wide_state in zip(params, wide, states, wide_states, strict=True):
            param.copy_(copy)
            if COMPENSATION in state:
                state[COMPENSATION].copy_(copy.sub_(param))
            for key, value in wide_state.items():
                if value is not state[key]:
                    state[key].copy_(value)

    return bounded(run, ELEMENTS_IN_CACHES if on_cpu else ELEMENTS_ON_DEVICE, elementwise=elementwise)


def at_least_float32(update: Implementation) -> Implementation:
    """An elementwise `update`, on float32 copies of bfloat16 and float16 parameters and on others as they are."""

    def run(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        low = params[0].dtype in LOW_PRECISION
        chosen = in_float32(update, elementwise=True, on_cpu=params[0].is_cpu) if low else update
        chosen(params, grads, states, h)

    return run


def compensated(state: State, param: torch.Tensor) -> State:
    """The first state of a parameter in float32, with its compensation."""
    state = {key: value.float() for key, value in state.items()}
    return {**state, COMPENSATION: torch.zeros_like(param, memory_format=torch.preserve_format)}


def restore_float32(
    state: Mapping[torch.Tensor, dict[str, Any]], groups: list[dict[str, Any]], saved: Mapping[str, Any]
) -> None:
    """Put back what torch rounded to the dtype of the parameters when it loaded `saved`."""
    names = [name for group in saved["param_groups"] for name in group["params"]]
    params = [param for group in groups for param in group["params"]]
    for name, param in zip(names, params, strict=True):
        for key, value in saved["state"].get(name, {}).items():
            if param.dtype in LOW_PRECISION and isinstance(value, torch.Tensor) and value.dtype is torch.float32:
                state[param][key] = value.to(param.device, copy=True)
