"""An average of the weights beside them, for laws that ask for one: it is evaluated and saved, and the weights go on.

While it is shown, the parameters hold the average and the optimizer's state the weights; neither is there twice.
Averages of bfloat16 and float16 parameters are float32, and are rounded where they are shown.

Source: averaging with polynomial decay, O. Shamir and T. Zhang, Stochastic Gradient Descent for Non-smooth
Optimization, 2013; that it takes the place of a schedule, A. Defazio et al., The Road Less Scheduled, 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.optim.precision.low import LOW_PRECISION
from emo_hf.optim.sharding import own_elements
from emo_hf.optim.state_keys import AVERAGE


@torch.no_grad()
def follow(optimizer: Optimizer, share: float) -> None:
    """average ← average + share·(weights − average); the first average are the weights.

    Args:
        optimizer: after its step.
        share: in (0, 1].
    """
    params, averages = [], []
    for param in _moved(optimizer):
        state = optimizer.state[param]
        if AVERAGE not in state:
            dtype = torch.float32 if param.dtype in LOW_PRECISION else param.dtype
            state[AVERAGE] = param.detach().to(dtype, copy=True, memory_format=torch.preserve_format)
        elif param.dtype is state[AVERAGE].dtype:
            params.append(own_elements(param))
            averages.append(own_elements(state[AVERAGE]))
        else:
            own_elements(state[AVERAGE]).lerp_(own_elements(param).to(state[AVERAGE].dtype), share)
    if params:
        torch._foreach_lerp_(averages, params, share)


@torch.no_grad()
def exchange(optimizer: Optimizer) -> bool:
    """Put the average into the parameters and the weights into its place, or the reverse; whether there is one."""
    averaged = list(_averaged(optimizer))
    for param, average in averaged:
        kept = own_elements(param).clone()
        own_elements(param).copy_(own_elements(average))
        own_elements(average).copy_(kept)
    return bool(averaged)


def forget(optimizer: Optimizer) -> None:
    """Drop the average, and leave in the parameters what they hold."""
    for param, _ in list(_averaged(optimizer)):
        del optimizer.state[param][AVERAGE]


def keep_precision(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Put back averages which torch, loading `saved`, has rounded to the dtype of their parameters."""
    states = saved.get("state", {})
    names = [name for group in saved.get("param_groups", ()) for name in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for name, param in zip(names, params, strict=False):
        average = states.get(name, {}).get(AVERAGE)
        if average is not None and param.dtype in LOW_PRECISION:
            optimizer.state[param][AVERAGE] = average.to(param.device, torch.float32, copy=True)


def _moved(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    """The parameters that have been moved by now."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None or param in optimizer.state:
                yield param


def _averaged(optimizer: Optimizer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            average = optimizer.state[param].get(AVERAGE) if param in optimizer.state else None
            if average is not None:
                yield param, average
