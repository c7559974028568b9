"""From a name, a model and options to an emo optimizer: the one way, for the Trainer, the recipe and users' loops."""

from __future__ import annotations

from typing import Any

from torch import nn

from emo_hf.optim import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.trainer.options import SELF_STOP_OPTIONS, EmoOptions, read_options
from emo_hf.trainer.param_groups import build_param_groups

OPTIMIZERS: dict[str, type[EmoOptimizer]] = {"emonavi": EmoNavi, "emofact": EmoFact, "emolynx": EmoLynx}
"""Name → class. A new optimizer is one file in `optim/` and one line here."""


def create_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    **options: Any,
) -> EmoOptimizer:
    """Make an emo optimizer for a model, its parameters grouped by what they are.

    Args:
        name: `emonavi`, `emofact` or `emolynx`.
        model: the model; parameters that require gradients are optimized. PEFT's layers are recognised.
        lr: learning rate.
        betas: (β1, β2), each in [0, 1).
        eps: term in the denominator.
        weight_decay: decoupled weight decay; biases and norms do not decay.
        **options: any of the optimizer and group options of the README's table, such as `use_shadow=True` or
            `lora_b_lr_ratio=16`.

    Returns:
        The optimizer, with named parameter groups.

    Raises:
        ValueError: for an unknown name or option, an unacceptable value, or a model with nothing to train.
    """
    misplaced = sorted(SELF_STOP_OPTIONS.keys() & options.keys())
    if misplaced:
        raise ValueError(f"{', '.join(misplaced)}: an optimizer cannot stop a loop; use EmoEarlyStoppingCallback")
    cls, kwargs = optimizer_cls_and_kwargs(
        name, model, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, options=read_options(options)
    )
    return cls(**kwargs)


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
        name: `emonavi`, `emofact` or `emolynx`.
        model: the model whose parameters go into `params`; None leaves the grouping to the caller.
        lr, betas, eps, weight_decay: as for `create_optimizer`; `options` may override betas and eps.
        options: what `read_options` made of the user's options.

    Raises:
        ValueError: for an unknown name, or a model with nothing to train.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    chosen = dict(options.optimizer)
    kwargs: dict[str, Any] = {
        "lr": lr,
        "betas": (chosen.pop("beta1", betas[0]), chosen.pop("beta2", betas[1])),
        "eps": eps,
        "weight_decay": weight_decay,
        **chosen,
    }
    if model is not None:
        kwargs["params"] = build_param_groups(model, lr=lr, weight_decay=weight_decay, roles=options.roles)
    return OPTIMIZERS[name], kwargs
