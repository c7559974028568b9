"""From a name, a model and options to an emo optimizer: the one way, for the Trainer, the recipe and users' loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from emo_hf.optim.family import FAMILY, SHORTHANDS, family_names
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.version import Version
from emo_hf.trainer.options import CALLBACK_OPTIONS, EmoOptions, read_options
from emo_hf.trainer.param_groups import build_param_groups


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
    cls, kwargs = optimizer_cls_and_kwargs(
        name,
        model,
        lr=version.lr if lr is None else lr,
        betas=version.betas if betas is None else betas,
        eps=eps,
        weight_decay=weight_decay,
        options=read,
    )
    return cls(**kwargs, writer=writer)


def version_of(name: str, options: EmoOptions) -> Version:
    """The generation that a name and options stand for.

    Raises:
        ValueError: for an unknown name, or a version that this optimizer does not have.
    """
    return _class_named(name).version_named(options.optimizer.get("version"))


def refuse_early(name: str, options: EmoOptions) -> None:
    """Say now what the making of the optimizer would say later, when data and model are there.

    Raises:
        ValueError: for an unknown name, an option that this optimizer does not have, or options that exclude each
            other.
    """
    version = version_of(name, options)
    cls, kwargs = optimizer_cls_and_kwargs(
        name, None, lr=version.lr, betas=version.betas, eps=1e-8, weight_decay=0.0, options=options
    )
    try:
        cls([torch.zeros(1)], **kwargs)
    except TypeError as error:
        raise ValueError(str(error)) from None


def optimizer_cls_and_kwargs(
    name: str,
    model: nn.Module | None,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    options: EmoOptions,
) -> tuple[type[EmoOptimizer], dict[str, Any]]:
    """The class and its arguments, as the Trainer's `optimizer_cls_and_kwargs` wants them.

    Args:
        name: as for `create_optimizer`.
        model: the model whose parameters go into `params`; None leaves the grouping to the caller.
        lr, betas, eps, weight_decay: as for `create_optimizer`; `options` may override betas and eps.
        options: what `read_options` made of the user's options.

    Raises:
        ValueError: for an unknown name, or a model with nothing to train.
    """
    cls = _class_named(name)
    chosen = {**SHORTHANDS.get(name, ("", {}))[1], **options.optimizer}
    kwargs: dict[str, Any] = {
        "lr": lr,
        "betas": (chosen.pop("beta1", betas[0]), chosen.pop("beta2", betas[1])),
        "eps": eps,
        "weight_decay": weight_decay,
        **chosen,
    }
    if model is not None:
        kwargs["params"] = build_param_groups(model, lr=lr, weight_decay=weight_decay, roles=options.roles)
    return cls, kwargs


def _class_named(name: str) -> type[EmoOptimizer]:
    if name not in family_names():
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(family_names())}")
    return FAMILY[SHORTHANDS[name][0] if name in SHORTHANDS else name]
