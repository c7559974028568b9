"""Tensors of which this rank holds a part only (DTensors of FSDP2 and tensor parallelism)."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    # Where there is one, its module has been imported; nobody else shall pay for that.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_elements(tensor: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """The elements that lie on this rank, sharing their memory; a plain tensor is returned as it is.

    Args:
        tensor: a DTensor or a plain tensor.
        like: a DTensor whose placements the elements have to follow. A gradient may have others (a sum that has still
            to be taken over the ranks, say), and is brought to them.
    """
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    if like is not None and sharded.placements != (placements := cast(Any, like).placements):
        sharded = sharded.redistribute(placements=placements)
    elements: torch.Tensor = sharded.to_local()
    return elements


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All elements of a tensor: of a DTensor (a loss under tensor parallelism) gathered or summed from the ranks."""
    if not is_sharded(tensor):
        return tensor
    gathered: torch.Tensor = cast(Any, tensor).full_tensor()
    return gathered
