"""Parameter groups that a trainer brings along, and the ones that are made here where it brings the plain ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.trainer.param_groups import ROLES, GroupOptions, build_param_groups, roles_of

logger = logging.getLogger(__name__)

PLAIN = {"params", "weight_decay"}
"""What the Trainer's own two groups have: the ones with weight decay and the ones without."""


def grouping_class(cls: type[EmoOptimizer], model: nn.Module, roles: Mapping[str, GroupOptions]) -> type[EmoOptimizer]:
    """What a trainer may call with its parameter groups in place of an optimizer's class.

    Trainers make an optimizer by `optimizer_cls(groups, **optimizer_kwargs)`, some with groups of their own: LoRA+,
    learning rates by module, a rate for the vision tower. Those are taken as they are. The Trainer's plain ones give
    way to groups by what the parameters are.

    Args:
        cls: the optimizer's class; calling what is returned makes an instance of exactly this class.
        model: the model whose parameters they are.
        roles: the user's settings by role, as `build_param_groups` takes them.
    """

    def new(_: type, params: Any, *args: Any, **kwargs: Any) -> EmoOptimizer:
        return cls(_grouped(params, model, roles, **kwargs), *args, **kwargs)

    return type(cls.__name__, (cls,), {"__new__": new, "__doc__": cls.__doc__, "__module__": cls.__module__})


def _grouped(
    params: Any, model: nn.Module, roles: Mapping[str, GroupOptions], *, lr: float, weight_decay: float, **_: Any
) -> list[dict[str, Any]]:
    given = list(params)
    if given and isinstance(given[0], torch.Tensor):
        given = [{"params": given}]
    if not all(isinstance(group, dict) for group in given):  # pairs of name and parameter
        return given
    groups = [{**group, "params": _listed(group["params"])} for group in given]
    if all(_is_plain(group, weight_decay) for group in groups):
        theirs = {id(param) for group in groups for param in group["params"]}
        ours = build_param_groups(model, lr=lr, weight_decay=weight_decay, roles=roles)
        for group in ours:
            group["params"] = [param for param in group["params"] if id(param) in theirs]
        if sum(len(group["params"]) for group in ours) == len(theirs):
            return [group for group in ours if group["params"]]
    groups = [group for group in groups if group["params"]]
    _name(groups, model, weight_decay)
    logger.warning(
        "The parameter groups are those that the trainer has made, by name: %s.%s",
        ", ".join(f"{group['name']} (lr {float(group.get('lr', lr)):g})" for group in groups),
        f" The options of {', '.join(roles)} have no effect." if roles else "",
    )
    return groups


def _listed(params: Any) -> list[torch.Tensor]:
    return [params] if isinstance(params, torch.Tensor) else list(params)


def _is_plain(group: Mapping[str, Any], weight_decay: float) -> bool:
    return group.keys() <= PLAIN and group.get("weight_decay", weight_decay) in (0.0, weight_decay)


def _name(groups: Iterable[dict[str, Any]], model: nn.Module, weight_decay: float) -> None:
    """Name groups after the roles of their parameters, as `lora_a`, `lora_a+head` or `lora_b_no_decay`."""
    groups, roles = list(groups), roles_of(model)
    taken = {group["name"] for group in groups if "name" in group}
    for group in groups:
        if "name" in group:
            continue
        present = {roles.get(param, "base") for param in group["params"]}
        decays = bool(group.get("weight_decay", weight_decay)) or not weight_decay
        stem = "+".join(role for role in ROLES if role in present)
        stem = ("decay" if decays else "no_decay") if stem == "base" else stem if decays else f"{stem}_no_decay"
        free = (stem if count == 1 else f"{stem}_{count}" for count in range(1, len(groups) + 2))
        group["name"] = next(name for name in free if name not in taken)
        taken.add(group["name"])
