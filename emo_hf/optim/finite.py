"""Whether the gradients of a step are finite, everywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from emo_hf.optim.tensors.dtensor import own_elements


class HasGroups(Protocol):
    """What has parameter groups."""

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]: ...


def gradients_are_finite(facts: HasGroups) -> bool:
    """Whether no gradient that this rank has holds a NaN or an infinity; one look at the device.

    Judged by the largest size in each, which neither overflows nor hides a NaN, as sums do.
    """
    by_device: dict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for _, gradient in _named_gradients(facts):
        by_device[gradient.device].append(gradient)
    return all(
        bool(torch.stack([size.float() for size in torch._foreach_norm(gradients, float("inf"))]).isfinite().all())
        for gradients in by_device.values()
    )


def count_not_finite(facts: HasGroups) -> dict[str, int]:
    """How many elements of which gradients are NaN or infinite on this rank, by the parameters' names.

    Parameters that the optimizer was not told the names of are called by their place in their group.
    """
    counts = {}
    for name, gradient in _named_gradients(facts):
        count = int(gradient.numel() - gradient.isfinite().sum())
        if count:
            counts[name] = count
    return counts


def _named_gradients(facts: HasGroups) -> Iterator[tuple[str, torch.Tensor]]:
    for at, group in enumerate(facts.param_groups):
        names = group.get("param_names")
        for i, param in enumerate(group["params"]):
            if param.grad is not None:
                own = own_elements(param.grad)
                own = own.coalesce().values() if own.is_sparse else own
                if own.numel():
                    yield names[i] if names else f"parameter {i} of {group.get('name', f'group_{at}')}", own
