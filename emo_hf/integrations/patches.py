"""Everything that emo_hf changes in other packages, in one list: where, why, who does it and who takes it back.

A method of ours stands before theirs and calls it. Taking it back gives the place its own method again. Where somebody
has laid a method of their own over ours since, theirs stays, and ours only passes calls on. Where the place has moved,
one line says so and what to do, and everything else goes on.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS = "_emo_hf_original"
"""Under which name our methods keep those that they stand before."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patch:
    """One place in another package that is changed while something is in use.

    Attributes:
        why: what for.
        put_by: what changes it.
        taken_back_by: what gives it back.
        if_moved: what to do where a version of the package has no such place.
    """

    why: str
    put_by: str
    taken_back_by: str
    if_moved: str


_TAP = "making an emo optimizer, or attach, where accelerate is imported", "emo_hf.integrations.accelerate.uninstall()"
_BACKWARD = "feel_backward", "remove() of the last handle"
_REGISTER = "emo_hf.register()", "emo_hf.unregister()"
_CALLBACK = "emo_hf.register(), and every EmoCallback", "emo_hf.unregister()"
_BY_HAND = "call optimizer.eval() before an evaluation or a save, and optimizer.train() after it"
_PRINTS = (*_CALLBACK, "nothing: all values are printed")
_PASS_BY_HAND = "pass Trainer(optimizers=(emo_hf.create_optimizer(…), None), callbacks=[emo_hf.EmoCallback()])"

PATCHES: dict[str, Patch] = {
    "accelerate:Accelerator.backward": Patch(
        "losses on their way to backward reach the optimizers", *_TAP, "show the losses by observe(loss)"
    ),
    "accelerate:Accelerator.clip_grad_norm_": Patch(
        "the norm that clipping takes says whether gradients are finite", *_TAP, "nothing: a norm is taken at the step"
    ),
    "accelerate:Accelerator.prepare_model": Patch(
        "to know when all ranks go through backward together", *_TAP, "nothing: losses are exchanged at the step"
    ),
    "accelerate:Accelerator._prepare_deepspeed": Patch(
        "ZeRO-Offload keeps the optimizer that was asked for", *_TAP,
        'set "zero_force_ds_cpu_optimizer": false in the DeepSpeed configuration',
    ),
    "torch:Tensor.backward": Patch(
        "losses of a plain loop reach the optimizers", *_BACKWARD, "show the losses by observe(loss)"
    ),
    "torch.amp:GradScaler.scale": Patch(
        "a scaled loss is known as it was before", *_BACKWARD, "show the losses by observe(loss)"
    ),
    "transformers.training_args:OptimizerNames": Patch("--optim takes the family", *_REGISTER, _PASS_BY_HAND),
    "transformers.trainer_optimizer:_OPTIMIZER_HANDLERS": Patch("the Trainer makes them", *_REGISTER, _PASS_BY_HAND),
    "transformers.trainer:DEFAULT_CALLBACKS": Patch("EmoCallback is in every Trainer", *_REGISTER, _PASS_BY_HAND),
    "transformers:Trainer.evaluation_loop": Patch(
        "the parameters hold the average of the weights while it runs", *_CALLBACK, _BY_HAND
    ),
    "transformers:Trainer.save_model": Patch("the average of the weights is saved", *_CALLBACK, _BY_HAND),
    "transformers:Trainer._save_checkpoint": Patch(
        "the same, so that the optimizer's state belongs to the model beside it", *_CALLBACK, _BY_HAND
    ),
    "transformers:Trainer._evaluate": Patch(
        "an evaluation in training, all of its sets, is heard", *_CALLBACK, "optimizer.hear_evaluation(loss)"
    ),
    "transformers:Trainer._load_optimizer_and_scheduler": Patch(
        "options that a checkpoint overrides are named", *_CALLBACK, "nothing: the checkpoint's options count"
    ),
    "transformers.trainer_callback:CallbackHandler.add_callback": Patch(
        "an EmoCallback comes before reporters, in the place of the registered one", *_CALLBACK,
        "give EmoCallback before other callbacks",
    ),
    "transformers.trainer_callback:ProgressCallback.on_log": Patch("a few values are printed, not all", *_PRINTS),
    "transformers.trainer_callback:PrinterCallback.on_log": Patch("a few values are printed, not all", *_PRINTS),
    "transformers.utils.notebook:NotebookProgressCallback.on_log": Patch("two columns more", *_PRINTS),
    "transformers.utils.notebook:NotebookProgressCallback.on_evaluate": Patch("two columns more", *_PRINTS),
    "sys:meta_path": Patch(
        "the names are registered once the Trainer is imported", "`emo-hf run`, in its own processes only",
        "the end of the process", "call emo_hf.register() in the script",
    ),
}  # fmt: skip
"""`module:attribute` → what is changed there."""

_before: dict[str, tuple[Any, Any]] = {}
"""Place → our method, and the one that it stands before."""


_missing: set[str] = set()
"""Places that there are not, which has been said."""


def put(place: str, over: Callable[[Any], Any]) -> None:
    """Put a method of ours before another package's; doing it twice changes nothing.

    Args:
        place: a key of `PATCHES` that names a method.
        over: makes our method of theirs.
    """
    owner, name = _find(place)
    present = getattr(owner, name, None)
    if present is None:
        if place in _missing:
            return
        _missing.add(place)
        logger.warning("%s is not there in this version: emo_hf cannot see to it that %s. Remedy: %s.",
                       place, PATCHES[place].why, PATCHES[place].if_moved)  # fmt: skip
        return
    if place not in _before:
        while _is_ours(present):  # left by a former copy of this module, before a reload
            present = present.__wrapped__
        ours = functools.wraps(present)(over(present))
        setattr(ours, OURS, present)
        setattr(owner, name, present)
        _before[place] = ours, present
    ours, original = _before[place]
    if present is original:  # by now, or again, if somebody has put it back
        setattr(owner, name, ours)


def take_back(place: str) -> None:
    """Give another package its own method again; twice changes nothing."""
    owner, name = _find(place)
    ours, original = _before.get(place, (None, None))
    if ours is not None and vars(owner).get(name) is ours:
        setattr(owner, name, original)
        del _before[place]


def _is_ours(method: Any) -> bool:
    # A wrapper of somebody else's has copied the mark, and stands before another method.
    return hasattr(method, OURS) and getattr(method, OURS) is getattr(method, "__wrapped__", None)


def _find(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name
