"""Optimizers whose steps an attached emotion cannot scale, known by what they do."""

from __future__ import annotations

import torch
from torch.optim.optimizer import Optimizer

WITHIN_BACKWARD = (
    "{name} moves parameters one by one within backward{sign}, so that there is no step for all of them whose rate "
    "could be scaled: use it without that, or take an emo optimizer and emo_hf.step_in_backward"
)


def refuse_step_within_backward(name: str) -> None:
    """Raise if backward is going on.

    Args:
        name: the optimizer's class, whose `step()` is called.

    Raises:
        RuntimeError: in that case.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(WITHIN_BACKWARD.format(name=name, sign=" (step() was called there)"))


def refuse_step_without_gradients(optimizer: Optimizer, name: str) -> None:
    """Raise if no parameter has a gradient when a step with a loss comes: they were used and freed before.

    Raises:
        RuntimeError: in that case.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if params and all(param.grad is None for param in params):
        raise RuntimeError(WITHIN_BACKWARD.format(name=name, sign=" (no gradient was left at step())"))


def optimizers_within(optimizer: Optimizer) -> list[Optimizer]:
    """Optimizers that another one holds and steps, perhaps past its own `step()`, as SAM's `second_step` does.

    Only those with the same parameter groups: what is scaled in the one is scaled in the other.
    """
    groups = {id(group) for group in optimizer.param_groups}
    return [
        held
        for held in vars(optimizer).values()
        if isinstance(held, Optimizer) and held is not optimizer and groups & set(map(id, held.param_groups))
    ]
