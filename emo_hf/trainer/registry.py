"""register(): makes the emo optimizers known to the Hugging Face Trainer by name. Explicit, idempotent, reversible."""

from __future__ import annotations

from typing import Any

from emo_hf.optim.family import FAMILY
from emo_hf.trainer.callbacks import EmoCallback
from emo_hf.trainer.factory import optimizer_cls_and_kwargs, version_of
from emo_hf.trainer.generation_defaults import learning_rate_and_betas
from emo_hf.trainer.options import parse_optim_args, read_options
from emo_hf.trainer.param_groups import has_adapters

SUPPORTED_TRANSFORMERS = "5.2 to 5.23"


def register(**emotion: Any) -> None:
    """Make `--optim emonavi` and the other names of the family valid everywhere in transformers.

    The names become members of `OptimizerNames` (so that `HfArgumentParser`, when it is built afterwards, and
    `TrainingArguments` take them), the Trainer learns how to make them, and `EmoCallback` joins its default callbacks.
    Calling it twice changes nothing; `unregister()` takes it all back.

    Args:
        **emotion: arguments of `EmoCallback`: with `emotion="v3.1"`, say, any other optimizer of a Trainer that is
            made from now on has an emotion of that law.

    Raises:
        ImportError: if transformers or aenum is not installed.
        RuntimeError: if this version of transformers keeps its optimizers elsewhere.
    """
    from aenum import extend_enum

    names, handlers, default_callbacks = _transformers_internals()
    EmoCallback(**emotion)  # refuses what is wrong before anything is changed
    for name in FAMILY:
        if name not in names._value2member_map_:
            extend_enum(names, name.upper(), name)
        handlers[names(name)] = _handle
    if emotion:
        EmoCallback.for_every_trainer = emotion
    if EmoCallback not in default_callbacks:
        default_callbacks.append(EmoCallback)


def unregister() -> None:
    """Take back what `register()` did. Trainers that already exist keep what they have."""
    names, handlers, default_callbacks = _transformers_internals()
    EmoCallback.for_every_trainer = {}
    for member in [member for member, handler in handlers.items() if handler is _handle]:
        del handlers[member]
        del names._value2member_map_[member.value]
        del names._member_map_[member.name]
        names._member_names_.remove(member.name)
        if member.name in vars(names):
            type.__delattr__(names, member.name)
    if EmoCallback in default_callbacks:
        default_callbacks.remove(EmoCallback)


def is_registered() -> bool:
    """Whether the Trainer of this process knows the emo optimizers."""
    _, handlers, default_callbacks = _transformers_internals()
    return EmoCallback in default_callbacks and sum(handler is _handle for handler in handlers.values()) == len(FAMILY)


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
    that subclasses which change them keep their say.
    """
    name = context.args.optim.value
    options = read_options(parse_optim_args(context.args.optim_args))
    grouped = context.model is not None and (bool(options.roles) or has_adapters(context.model))
    lr, betas = learning_rate_and_betas(context.args, version_of(name, options), options)
    return optimizer_cls_and_kwargs(
        name,
        context.model if grouped else None,
        lr=lr,
        betas=betas,
        eps=context.args.adam_epsilon,
        weight_decay=context.args.weight_decay,
        options=options,
    )
