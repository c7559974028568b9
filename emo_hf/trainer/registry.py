"""register(): makes the emo optimizers known to the Hugging Face Trainer by name. Explicit, idempotent, reversible."""

from __future__ import annotations

from typing import Any

from emo_hf.optim.family import family_names
from emo_hf.trainer.best_metric import BestMetricCallback
from emo_hf.trainer.callbacks import EmoCallback
from emo_hf.trainer.client_groups import grouping_class
from emo_hf.trainer.factory import optimizer_cls_and_kwargs, version_of
from emo_hf.trainer.generation_defaults import learning_rate_and_betas
from emo_hf.trainer.names import extend_names, take_back_names
from emo_hf.trainer.notebook import show_rates, show_rates_no_more
from emo_hf.trainer.options import parse_optim_args, read_options
from emo_hf.trainer.param_groups import has_adapters

SUPPORTED_TRANSFORMERS = "5.2 to 5.24"

CALLBACKS = (EmoCallback, BestMetricCallback)
"""What joins the Trainer's default callbacks."""


def register(**emotion: Any) -> None:
    """Make `--optim emonavi` and the other names of the family valid everywhere in transformers.

    The names become members of `OptimizerNames` (so that `HfArgumentParser`, when it is built afterwards, and
    `TrainingArguments` take them), the Trainer learns how to make them, and `EmoCallback` joins its default callbacks.
    Calling it twice changes nothing, and it may be called again after the package was reloaded or imported anew;
    `unregister()` takes it all back.

    Args:
        **emotion: arguments of `EmoCallback`: with `emotion="v3.1"`, say, any other optimizer of a Trainer that is
            made from now on has an emotion of that law.

    Raises:
        ImportError: if transformers or aenum is not installed.
        RuntimeError: if this version of transformers keeps its optimizers elsewhere.
    """
    names, handlers, default_callbacks = _transformers_internals()
    EmoCallback(**emotion)  # refuses what is wrong before anything is changed
    extend_names(names)
    for name in family_names():
        handlers[names(name)] = _handle
    if emotion:
        EmoCallback.for_every_trainer = emotion
    for callback in CALLBACKS:
        _remove_former(default_callbacks, callback)
        if callback not in default_callbacks:
            default_callbacks.append(callback)
    show_rates()


def unregister() -> None:
    """Take back what `register()` did. Trainers that already exist keep what they have."""
    names, handlers, default_callbacks = _transformers_internals()
    EmoCallback.for_every_trainer = {}
    for member in [member for member, handler in handlers.items() if _is_same(handler, _handle)]:
        del handlers[member]
    take_back_names(names)
    for callback in CALLBACKS:
        _remove_former(default_callbacks, callback)
        if callback in default_callbacks:
            default_callbacks.remove(callback)
    show_rates_no_more()


def is_registered() -> bool:
    """Whether the Trainer of this process knows the emo optimizers."""
    _, handlers, default_callbacks = _transformers_internals()
    handled = sum(handler is _handle for handler in handlers.values())
    return handled == len(family_names()) and all(callback in default_callbacks for callback in CALLBACKS)


def _is_same(found: Any, ours: Any) -> bool:
    """Whether it is ours, or what stood for it in a former copy of its module, before a reload or a second import."""
    return (getattr(found, "__module__", None), getattr(found, "__qualname__", None)) == (
        ours.__module__,
        ours.__qualname__,
    )


def _remove_former(callbacks: list[Any], ours: type) -> None:
    callbacks[:] = [callback for callback in callbacks if callback is ours or not _is_same(callback, ours)]


def _transformers_internals() -> tuple[Any, dict[Any, Any], list[Any]]:
    import transformers

    try:
        from transformers.trainer import DEFAULT_CALLBACKS
        from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS
        from transformers.training_args import OptimizerNames
    except ImportError as error:
        raise RuntimeError(
            f"emo_hf cannot register with transformers {transformers.__version__}: {error}. It knows transformers "
            f"{SUPPORTED_TRANSFORMERS}. Install one of these, or leave registration out and pass "
            "Trainer(optimizers=(emo_hf.create_optimizer(...), None), callbacks=[emo_hf.EmoCallback()])"
        ) from error
    return OptimizerNames, _OPTIMIZER_HANDLERS, DEFAULT_CALLBACKS


def _handle(context: Any) -> tuple[Any, dict[str, Any]]:
    """The Trainer's handler: its own arguments and `optim_args` in, class and arguments out.

    Without adapters and without options for groups, the Trainer's own two groups are right, and are left to it, so
    that subclasses which change them keep their say. Otherwise the class sorts them out when it is called.
    """
    name = context.args.optim.value
    options = read_options(parse_optim_args(context.args.optim_args))
    lr, betas = learning_rate_and_betas(context.args, version_of(name, options), options)
    cls, kwargs = optimizer_cls_and_kwargs(
        name,
        None,
        lr=lr,
        betas=betas,
        eps=context.args.adam_epsilon,
        weight_decay=context.args.weight_decay,
        options=options,
    )
    if context.model is not None and (options.roles or has_adapters(context.model)):
        cls = grouping_class(cls, context.model, options.roles)
    return cls, kwargs
