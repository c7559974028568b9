"""Whether the gradients of a step are finite, everywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.optim.tensors.dtensor import own_elements


def gradients_are_finite(optimizer: Optimizer) -> bool:
    """Whether no gradient that this rank has holds a NaN or an infinity; one look at the device.

    Judged by the largest size in each, which neither overflows nor hides a NaN, as sums do.
    """
    by_device: dict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for _, gradient in _named_gradients(optimizer):
        by_device[gradient.device].append(gradient)
    return all(
        bool(torch.stack([size.float() for size in torch._foreach_norm(gradients, float("inf"))]).isfinite().all())
        for gradients in by_device.values()
    )


def count_not_finite(optimizer: Optimizer) -> dict[str, int]:
    """How many elements of which gradients are NaN or infinite on this rank, by the parameters' names.

    Parameters that the optimizer was not told the names of are called by their place in their group.
    """
    counts = {}
    for name, gradient in _named_gradients(optimizer):
        count = int(gradient.numel() - gradient.isfinite().sum())
        if count:
            counts[name] = count
    return counts


def _named_gradients(optimizer: Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for at, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for i, param in enumerate(group["params"]):
            if param.grad is not None:
                own = own_elements(param.grad)
                own = own.coalesce().values() if own.is_sparse else own
                if own.numel():
                    yield names[i] if names else f"parameter {i} of {group.get('name', f'group_{at}')}", own
