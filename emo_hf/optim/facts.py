"""What the engine has to know of an optimizer for a step: facts about parameter groups, gradients and state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from emo_hf.laws.law import Law
from emo_hf.optim.left_out import SKIP_STEP
from emo_hf.optim.sharding import local_elements

MAY_DIFFER = ("params", "lr", "foreach", "fused", "native", "capturable", "differentiable")
"""Options that change nothing but the speed, and the learning rate, which belongs to each rank's scheduler."""


@dataclass(frozen=True, slots=True)
class Facts:
    """An optimizer's parameter groups and state, looked at and not changed.

    Attributes:
        param_groups: the parameter groups.
        state: the state, by parameter.
        defaults: the optimizer's options.
        identity: what else has to be the same on all ranks, by name.
    """

    param_groups: Sequence[Mapping[str, Any]]
    state: Mapping[Any, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are; None while DeepSpeed, which hands them over for the moment of a step, has them."""
        return next((param.device for group in self.param_groups for param in group["params"]), None)

    @property
    def are_at_rate_0(self) -> bool:
        """Whether the learning rates are 0 now, as they are where a step is there to create the state."""
        return all(group.get("lr") is not None and not float(group["lr"]) for group in self.param_groups)

    @property
    def create_state_only(self) -> bool:
        """Whether this step is one of torch's checkpointing code, perhaps on one rank alone, to create the state.

        The other ranks must not be waited for then. A rank whose loss lies on another one may also step at rate 0, in
        warm-up, but its gradients are not all 0.
        """
        gradients = (p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)
        return (
            self.are_at_rate_0
            and not any(self.state.values())
            and not any(local_elements(gradient).any() for gradient in gradients)
        )

    @property
    def skip_nonfinite(self) -> bool:
        """Whether the user wants steps left out whose gradients are not finite."""
        return any(group.get("nonfinite") == SKIP_STEP for group in self.param_groups)

    @property
    def have_gradients(self) -> bool:
        """Whether there are any now."""
        return any(param.grad is not None for group in self.param_groups for param in group["params"])

    def same_on_ranks(self, law: Law) -> dict[str, str]:
        """The options that have to be the same on all ranks that step together, by name, as text.

        Args:
            law: the law that is followed.
        """
        options: dict[str, Any] = {**self.identity, "emo_law": law.label}
        options |= {f"{name} of {law.name}": getattr(law, name) for name in law.options}
        for name in self.defaults.keys() - set(MAY_DIFFER):
            values = [str(group[name]) for group in self.param_groups if name in group]
            # Ranks of a pipeline may have groups that others lack.
            options[name] = ", ".join(dict.fromkeys(values)) if values else self.defaults[name]
        return {name: str(value) for name, value in options.items()}


def group_names(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """A name for each parameter group: its own, or `group_0`, … as long as no other group is called so."""
    groups = list(groups)
    taken = {group["name"] for group in groups if "name" in group}
    names = []
    for index, group in enumerate(groups):
        name = group.get("name", f"group_{index}")
        while "name" not in group and name in taken:
            name += "_"
        names.append(name)
    return names


def innermost(optimizer: Any) -> Any:
    """What any number of wrappers hold as `.optimizer`."""
    seen: list[Any] = []
    while hasattr(optimizer, "optimizer") and all(optimizer is not known for known in seen):
        seen.append(optimizer)
        optimizer = optimizer.optimizer
    return optimizer
