"""From a name, a model and options to an emo optimizer: the one way, for the Trainer, the recipe and users' loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from emo_hf.optim.backward import HOW
from emo_hf.optim.family import FAMILY, SHORTHANDS, family_names
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.version import Version
from emo_hf.trainer.options import CALLBACK_OPTIONS, EmoOptions, read_options
from emo_hf.trainer.param_groups import GroupOptions, build_param_groups, groups_of_trainer

if TYPE_CHECKING:
    from transformers import TrainingArguments


def create_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float | None = None,
    betas: tuple[float, float] | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    writer: Any = None,
    **options: Any,
) -> EmoOptimizer:
    """Make an emo optimizer for a model, its parameters grouped by what they are.

    Args:
        name: its name in the Trainer, such as `emonavi`; one of `emo_hf.optim.family.family_names()`.
        model: the model; parameters that require gradients are optimized. PEFT's layers are recognised.
        lr: learning rate; None for the default of the optimizer's generation.
        betas: (β1, β2), each in [0, 1); None for the default of the optimizer's generation.
        eps: term in the denominator.
        weight_decay: decoupled weight decay; biases and norms do not decay.
        writer: a TensorBoard SummaryWriter, or what is like one, that is given each step's metrics.
        **options: any of the optimizer and group options, such as `use_shadow=True` or `lora_b_lr_ratio=16`.

    Returns:
        The optimizer, with named parameter groups.

    Raises:
        ValueError: for an unknown name or option, an unacceptable value, or a model with nothing to train.
        TypeError: for an option that this optimizer does not have.
    """
    misplaced = sorted(CALLBACK_OPTIONS.keys() & options.keys())
    if misplaced:
        raise ValueError(f"{', '.join(misplaced)}: an optimizer cannot stop a loop; use EmoEarlyStoppingCallback")
    read = read_options(options)
    version = version_of(name, read)
    lr, betas = version.lr if lr is None else lr, version.betas if betas is None else betas
    cls, kwargs = class_and_arguments(name, read, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    groups = build_param_groups(model, lr=lr, weight_decay=weight_decay, roles=read.roles)
    return cls(groups, **kwargs, writer=writer)


def version_of(name: str, options: EmoOptions) -> Version:
    """The generation that a name and options stand for.

    Raises:
        ValueError: for an unknown name, or a version that this optimizer does not have.
    """
    return _class_named(name).version_named(options.optimizer.get("version"))


def class_and_arguments(
    name: str, options: EmoOptions, *, betas: tuple[float, float], **arguments: Any
) -> tuple[type[EmoOptimizer], dict[str, Any]]:
    """The class and its arguments, as the Trainer's `optimizer_cls_and_kwargs` wants them.

    Args:
        name: as for `create_optimizer`.
        options: the user's, which may override betas and eps.
        betas: of the optimizer.
        arguments: further ones, such as lr.

    Raises:
        ValueError: for an unknown name.
    """
    chosen = {**SHORTHANDS.get(name, ("", {}))[1], **options.optimizer}
    betas = (chosen.pop("beta1", betas[0]), chosen.pop("beta2", betas[1]))
    return _class_named(name), {**arguments, "betas": betas, **chosen}


def _class_named(name: str) -> type[EmoOptimizer]:
    if name not in family_names():
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(family_names())}")
    return FAMILY[SHORTHANDS[name][0] if name in SHORTHANDS else name]


def grouping_class(cls: type[EmoOptimizer], model: nn.Module, roles: Mapping[str, GroupOptions]) -> type[EmoOptimizer]:
    """What a trainer may call with its parameter groups in place of an optimizer's class; see `groups_of_trainer`.

    Args:
        cls: the optimizer's class; calling what is returned makes an instance of exactly this class.
        model: the model whose parameters they are.
        roles: the user's settings by role, as `build_param_groups` takes them.
    """

    def new(_: type, params: Any, *args: Any, **kwargs: Any) -> EmoOptimizer:
        own = {name: kwargs[name] for name in ("lr", "weight_decay")}
        return cls(groups_of_trainer(params, model, roles, **own), *args, **kwargs)

    return type(cls.__name__, (cls,), {"__new__": new, "__doc__": cls.__doc__, "__module__": cls.__module__})


# What is refused before data and model are there


def refuse_early(name: str, options: EmoOptions) -> None:
    """Say now what the making of the optimizer would say later.

    Raises:
        ValueError: for an unknown name, an option that this optimizer does not have, or options that exclude each
            other.
    """
    version = version_of(name, options)
    cls, kwargs = class_and_arguments(name, options, lr=version.lr, betas=version.betas)
    try:
        cls([torch.zeros(1)], **kwargs)
    except TypeError as error:
        raise ValueError(str(error)) from None


def refuse_steps_in_backward(args: TrainingArguments) -> None:
    """Say which of the Trainer's arguments do not go together with steps in backward.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """
    inner = args.accelerator_config.gradient_accumulation_kwargs or {}
    steps = max(args.gradient_accumulation_steps, inner.get("num_steps", 1))
    if args.max_grad_norm:
        why = (
            f"cannot clip by the norm of all gradients, which are never there at once, and max_grad_norm is "
            f"{args.max_grad_norm:g} (the Trainer's default is 1): set --max_grad_norm 0; to clip the elements of "
            "gradients instead, add clip_value=1.0, say, to optim_args"
        )
    elif steps > 1:
        why = (
            f"does not go together with gradient accumulation, and gradient_accumulation_steps is {steps}: set "
            f"--gradient_accumulation_steps 1, with a larger batch if it fits, or leave {HOW} out"
        )
    elif args.fp16:
        why = "does not go together with --fp16, whose gradients are scaled: use --bf16"
    elif args.deepspeed:
        why = "does not go together with DeepSpeed, which keeps the gradients itself: leave it out"
    else:
        return
    raise ValueError(f"{HOW} {why}")


# The names in transformers' list of optimizers, of which nothing is imported here


def extend_names(names: Any) -> None:
    """Make the names of the family members of `OptimizerNames`; doing it twice changes nothing.

    Raises:
        ImportError: if aenum is not installed.
    """
    from aenum import extend_enum

    for name in family_names():
        if name not in names._value2member_map_:
            extend_enum(names, name.upper(), name)


def take_back_names(names: Any) -> None:
    """Take the names of the family out of `OptimizerNames`."""
    for name in family_names():
        member = names._value2member_map_.pop(name, None)
        if member is not None:
            del names._member_map_[member.name]
            names._member_names_.remove(member.name)
            if member.name in vars(names):
                type.__delattr__(names, member.name)
