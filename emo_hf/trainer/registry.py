"""register(): makes the emo optimizers known to the Hugging Face Trainer by name. Explicit, idempotent, reversible."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from emo_hf.optim.family import family_names
from emo_hf.trainer import factory, patches
from emo_hf.trainer.callbacks import EmoCallback
from emo_hf.trainer.factory import class_and_arguments, version_of
from emo_hf.trainer.options import EmoOptions
from emo_hf.trainer.param_groups import has_adapters

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from emo_hf.optim.version import Version

logger = logging.getLogger(__name__)

SUPPORTED_TRANSFORMERS = "5.2 to 5.24"


def register(**emotion: Any) -> None:
    """Make `--optim emonavi` and the other names of the family valid everywhere in transformers.

    The names become members of `OptimizerNames` (so that `HfArgumentParser`, when it is built afterwards, and
    `TrainingArguments` take them), the Trainer learns how to make them, `EmoCallback` joins its default callbacks, and
    what `emo_hf.integrations.patches` lists is put around methods of transformers. Calling it twice changes nothing,
    and it may be called again after the package was reloaded or imported anew; `unregister()` takes it all back.

    Args:
        **emotion: arguments of `EmoCallback`: with `emotion="v3.1"`, say, any other optimizer of a Trainer that is
            made from now on has an emotion of that law; with `average_weights=True` every optimizer has an average of
            the weights beside it.

    Raises:
        ImportError: if transformers or aenum is not installed.
        RuntimeError: if this version of transformers keeps its optimizers elsewhere.
    """
    names, handlers, default_callbacks = _transformers_internals()
    EmoCallback(**emotion)  # refuses what is wrong before anything is changed
    factory.extend_names(names)
    for name in family_names():
        handlers[names(name)] = _handle
    if emotion:
        EmoCallback.for_every_trainer = emotion
    _without_ours(default_callbacks).append(EmoCallback)
    patches.install()


def unregister() -> None:
    """Take back what `register()` did. Trainers that already exist keep what they have."""
    names, handlers, default_callbacks = _transformers_internals()
    EmoCallback.for_every_trainer = {}
    for member in [member for member, handler in handlers.items() if _is_same(handler, _handle)]:
        del handlers[member]
    factory.take_back_names(names)
    _without_ours(default_callbacks)
    patches.uninstall()


def _is_same(found: Any, ours: Any) -> bool:
    """Whether it is ours, or what stood for it in a former copy of its module, before a reload or a second import."""
    place = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return place == (ours.__module__, ours.__qualname__)


def _without_ours(callbacks: list[Any]) -> list[Any]:
    """The same list, of which our callback has been taken out."""
    callbacks[:] = [callback for callback in callbacks if not _is_same(callback, EmoCallback)]
    return callbacks


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
    args, name = context.args, context.args.optim.value
    options = EmoOptions.of(args)
    lr, betas = _rate_and_betas(args, version_of(name, options), options)
    rest = {"eps": args.adam_epsilon, "weight_decay": args.weight_decay}
    cls, kwargs = class_and_arguments(name, options, lr=lr, betas=betas, **rest)
    if context.model is not None and (options.roles or has_adapters(context.model)):
        cls = factory.grouping_class(cls, context.model, options.roles)
    return cls, kwargs


def _rate_and_betas(
    args: TrainingArguments, version: Version, options: EmoOptions
) -> tuple[float, tuple[float, float]]:
    """The learning rate and betas that an optimizer of a generation is made with.

    The Trainer always hands over its own, whether the user has given any or not. Where its `lr` is a scale around 1,
    the Trainer's default of 5e-5 cannot be meant; where β2 is not 0.999, nor can the Trainer's. A value that happens
    to be the Trainer's default can be had through `optim_args` (beta2), or by one that differs in its last digit.
    """
    default = {field.name: field.default for field in dataclasses.fields(args)}
    lr, betas = args.learning_rate, (args.adam_beta1, args.adam_beta2)
    taken = []
    if version.lr_is_a_scale and lr == default["learning_rate"]:
        lr = version.lr
        taken.append(f"lr {lr:g} (a scale, of which the law makes the learning rate)")
    if betas != version.betas and betas == (default["adam_beta1"], default["adam_beta2"]):
        betas = version.betas
        if "beta2" not in options.optimizer:
            taken.append(f"betas {betas}")
    if taken and args.process_index == 0:
        logger.warning(
            "%s %s: %s, since the Trainer's defaults were left.", args.optim.value, version.name, " and ".join(taken)
        )
    return lr, betas
