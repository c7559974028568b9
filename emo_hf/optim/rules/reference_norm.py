"""The L1 norm of the first parameter group, which two rules look at once a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from emo_hf.optim.tensors.dtensor import own_elements, whole_norms


def first_group_norm(group: Mapping[str, Any]) -> torch.Tensor:
    """Σ‖p‖₁ over all parameters of a group, with a gradient or not, the same on every rank; without a sync."""
    params = list(group["params"])
    norms = whole_norms(params, [own_elements(param.detach()) for param in params], 1)
    return torch.stack([norm.to(norms[0].device) for norm in norms]).sum()


def remembered(saved: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A remembered norm where the present one lies."""
    return torch.as_tensor(saved, dtype=like.dtype, device=like.device)
