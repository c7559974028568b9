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
    for gradient in _gradients(optimizer):
        by_device[gradient.device].append(gradient)
    return all(
        bool(torch.stack([size.float() for size in torch._foreach_norm(gradients, float("inf"))]).isfinite().all())
        for gradients in by_device.values()
    )


def _gradients(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                own = own_elements(param.grad)
                own = own.coalesce().values() if own.is_sparse else own
                if own.numel():
                    yield own
