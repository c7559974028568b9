"""Which parameter gets which learning rate and weight decay, for plain models and for PEFT adapters."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from emo_hf.reading import number, optional, read_value

logger = logging.getLogger(__name__)

ROLES = ("lora_a", "lora_b", "embedding", "magnitude", "head", "adapter", "base")
"""What a trainable parameter can be; the parameter groups come in this order. See `build_param_groups`."""

_PLAIN = {"params", "weight_decay"}
"""What the Trainer's own two groups have: the ones with weight decay and the ones without."""

# Where PEFT's modules keep the module that they wrap, which is not theirs.
_WRAPPED = frozenset({"base_layer", "base_model", "model", "lora_model", "original_module", "token_adapter"})

# The Trainer's names for what must not decay, matched against the lower-case dotted parameter name.
_NO_DECAY_NAME = re.compile(r"bias|layernorm|rmsnorm|(?:^|[._])norm(?:\.|$)")


@functools.cache
def _own_attributes() -> dict[type[nn.Module], dict[str, str]]:
    """Role of what PEFT's layers hold under the attributes that they declare; any other attribute is "adapter"."""
    # Only for a model that has PEFT layers: a name that has moved is an ImportError, not a silently wrong role.
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils import ModulesToSaveWrapper

    on_embeddings = {"lora_embedding_A": "embedding", "lora_embedding_B": "embedding"}
    return {
        LoraLayer: {"lora_A": "lora_a", "lora_B": "lora_b", **on_embeddings, "lora_magnitude_vector": "magnitude"},
        TrainableTokensLayer: {"trainable_tokens_delta": "embedding"},
        ModulesToSaveWrapper: {"modules_to_save": "head"},
    }


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Settings of one role (see `ROLES`); what is None comes from `build_param_groups`.

    Attributes:
        lr: Absolute learning rate.
        lr_ratio: Learning rate as a multiple of the optimizer's; excludes `lr`.
        weight_decay: Decay coefficient of the role's weights.

    Raises:
        ValueError: A value is not a finite number >= 0, or both `lr` and `lr_ratio` are given.
    """

    lr: float | None = None
    lr_ratio: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        for option, value in asdict(self).items():
            object.__setattr__(self, option, read_value(option, value, optional(number(0))))
        if self.lr is not None and self.lr_ratio is not None:
            raise ValueError(f"lr and lr_ratio exclude each other, got lr={self.lr!r} and lr_ratio={self.lr_ratio!r}")


def build_param_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, roles: Mapping[str, GroupOptions] | None = None
) -> list[dict[str, Any]]:
    """Sorts the trainable parameters of a model into named parameter groups for a torch optimizer.

    A parameter's role is read from the PEFT layer that holds it, wherever that layer sits: below DDP, FSDP,
    `torch.compile`, or injected without a `PeftModel`.

    | role | parameters |
    |---|---|
    | `lora_a`, `lora_b` | A and B of LoRA layers (a `lora_bias` belongs to B) |
    | `embedding` | A and B of LoRA on embedding layers; PEFT's trainable tokens |
    | `magnitude` | DoRA's magnitude vectors |
    | `head` | copies made by `modules_to_save` |
    | `adapter` | everything else that PEFT has added: LoHa, LoKr, IA3, VeRA, prompt encoders, unknown tuners, ... |
    | `base` | the model's own parameters: all of a model without adapters, or the biases that `bias="all"` unfreezes |

    Weight decay is the Trainer's: none for biases, for LayerNorm, and for whatever is named a norm. Nor do magnitudes
    and vector-shaped `adapter` parameters (IA3's scales) decay, unless their role has an explicit `weight_decay`:
    decay would pull a scale towards 0. Without adapters the result is the Trainer's own split.

    LoRA+ is `roles={"lora_b": GroupOptions(lr_ratio=16), "embedding": GroupOptions(lr=1e-6)}`; A, B and embedding
    weights then get the rates of `peft.optimizers.create_loraplus_optimizer`. What is not LoRA differs: there every
    vector (a head's bias, a magnitude) has the rate of B, here each role has its own.

    Args:
        model: The model to train, wrapped or not, with `requires_grad` already set.
        lr: Learning rate of the optimizer, for every role that does not set its own.
        weight_decay: Decay coefficient, for every role that does not set its own.
        roles: Settings by role name.

    Returns:
        Groups `{"params": list, "name": str, "lr": float, "weight_decay": float}`, none of them empty, in the order of
        `ROLES`. They are named `<role>` and `<role>_no_decay`; those of `base` are `decay` and `no_decay`. Each
        trainable parameter is in exactly one group, tied parameters once, at their first place in the model.

    Raises:
        ValueError: Nothing is trainable, a role is unknown, or `lr` or `weight_decay` is not a finite number >= 0.
    """
    GroupOptions(lr=lr, weight_decay=weight_decay)  # refuses what is wrong
    roles = dict(roles or {})
    if unknown := [role for role in roles if role not in ROLES]:
        raise ValueError(f"unknown roles {unknown} of parameter groups; known are {list(ROLES)}")
    members: dict[tuple[str, bool], list[nn.Parameter]] = {key: [] for key in itertools.product(ROLES, (True, False))}
    for name, parameter, role, in_norm in _walk(model):
        if parameter.requires_grad:
            decays = not in_norm and not _NO_DECAY_NAME.search(name.lower())
            if decays and _is_scale(parameter, role):
                decays = role in roles and roles[role].weight_decay is not None
            members[role, decays].append(parameter)

    present = {role for (role, _), parameters in members.items() if parameters}
    if not present:
        raise ValueError(
            f"no parameter of {type(model).__name__} is trainable: set requires_grad on some before building the "
            "optimizer; a PEFT adapter loaded with from_pretrained or load_adapter needs is_trainable=True"
        )
    for role in roles.keys() - present:
        logger.warning("options of role %r have no effect: the trainable roles are %s", role, sorted(present))

    def group_of(role: str, decays: bool, parameters: list[nn.Parameter]) -> dict[str, Any]:
        options = roles.get(role, GroupOptions())
        ratio = 1.0 if options.lr_ratio is None else options.lr_ratio
        decay = weight_decay if options.weight_decay is None else options.weight_decay
        return {
            "params": parameters,
            "name": _group_name(role, decays),
            "lr": lr * ratio if options.lr is None else options.lr,
            "weight_decay": decay if decays else 0.0,
        }

    return [group_of(*key, parameters) for key, parameters in members.items() if parameters]


def groups_of_trainer(
    params: Any, model: nn.Module, roles: Mapping[str, GroupOptions], *, lr: float, weight_decay: float
) -> Any:
    """The groups that an optimizer is made of, where a trainer brings some along.

    Some trainers have groups of their own: LoRA+, learning rates by module, a rate for the vision tower. Those are
    taken as they are, and named by role. The Trainer's plain ones give way to groups by what the parameters are.

    Args:
        params: parameters, pairs of name and parameter, or groups; as the optimizer's class is called with.
        model: the model whose parameters they are.
        roles: the user's settings by role, as `build_param_groups` takes them.
        lr, weight_decay: the optimizer's.
    """
    given = list(params)
    if given and isinstance(given[0], torch.Tensor):
        given = [{"params": given}]
    if not all(isinstance(group, dict) for group in given):  # pairs of name and parameter
        return given
    lists = [[one] if isinstance(one := group["params"], torch.Tensor) else list(one) for group in given]
    groups = [{**group, "params": members} for group, members in zip(given, lists, strict=True)]
    decays = (0.0, weight_decay)
    if all(group.keys() <= _PLAIN and group.get("weight_decay", weight_decay) in decays for group in groups):
        theirs = {id(param) for group in groups for param in group["params"]}
        ours = build_param_groups(model, lr=lr, weight_decay=weight_decay, roles=roles)
        for group in ours:
            group["params"] = [param for param in group["params"] if id(param) in theirs]
        if sum(len(group["params"]) for group in ours) == len(theirs):
            return [group for group in ours if group["params"]]
    groups = [group for group in groups if group["params"]]
    _name_by_role(groups, model, weight_decay)
    logger.warning(
        "The parameter groups are those that the trainer has made, by name: %s.%s",
        ", ".join(f"{group['name']} (lr {float(group.get('lr', lr)):g})" for group in groups),
        f" The options of {', '.join(roles)} have no effect." if roles else "",
    )
    return groups


def has_adapters(model: nn.Module) -> bool:
    """Whether a model contains PEFT layers or is wrapped by PEFT, at any depth."""
    return any(_is_peft(module) for module in model.modules())


def _name_by_role(groups: Sequence[dict[str, Any]], model: nn.Module, weight_decay: float) -> None:
    """Name groups after the roles of their parameters, as `lora_a`, `lora_a+head` or `lora_b_no_decay`."""
    roles = {parameter: role for _, parameter, role, _ in _walk(model)}
    taken = {group["name"] for group in groups if "name" in group}
    for group in groups:
        if "name" not in group:
            present = {roles.get(param, "base") for param in group["params"]}
            role = "+".join(role for role in ROLES if role in present)
            stem = _group_name(role, bool(group.get("weight_decay", weight_decay)) or not weight_decay)
            free = (stem if count == 1 else f"{stem}_{count}" for count in itertools.count(1))
            group["name"] = next(name for name in free if name not in taken)
            taken.add(group["name"])


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, str, bool]]:
    """Yields (name, parameter, role, whether it is inside a LayerNorm) once per parameter, in the model's order."""
    places: dict[str, tuple[nn.Module, str, bool]] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        role, in_norm = "base", False
        if path:
            parent_path, _, attribute = path.rpartition(".")
            parent, role, in_norm = places[parent_path]
            role = _role_of(attribute, parent, role)
        in_norm = in_norm or isinstance(module, nn.LayerNorm)
        places[path] = module, role, in_norm
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield f"{path}.{attribute}", parameter, _role_of(attribute, module, role), in_norm


def _role_of(attribute: str, module: nn.Module, role: str) -> str:
    """Role of what `module`, itself found in `role`, holds as `attribute`."""
    if not _is_peft(module) or attribute in _WRAPPED:
        return role
    for layer, own in _own_attributes().items():
        if isinstance(module, layer):
            return own.get(attribute, "adapter")
    # A PEFT module inside an adapter is a part of it, like the layer that holds DoRA's magnitude.
    return "adapter" if role == "base" else role


def _is_peft(module: nn.Module) -> bool:
    # By where the classes come from: PEFT's adaption prompts and prompt encoders share no base class but nn.Module.
    return any(cls.__module__.partition(".")[0] == "peft" for cls in type(module).__mro__)


def _is_scale(parameter: nn.Parameter, role: str) -> bool:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed ZeRO-3 leaves an empty tensor in place
    return role == "magnitude" or (role == "adapter" and sum(size > 1 for size in shape) <= 1)


def _group_name(role: str, decays: bool) -> str:
    if role == "base":
        return "decay" if decays else "no_decay"
    return role if decays else f"{role}_no_decay"
