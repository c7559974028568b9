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
from typing import Any, NamedTuple

OURS = "_emo_hf_original"
"""Under which name our methods keep those that they stand before."""

logger = logging.getLogger(__name__)


class Patch(NamedTuple):
    """One place in another package that is changed while something is in use.

    Attributes:
        why: what for.
        if_moved: what to do where a version of the package has no such place.
    """

    why: str
    if_moved: str


_SHOW = "show the losses by observe(loss)"
_BY_HAND = "call optimizer.eval() before an evaluation or a save, and optimizer.train() after it"
_PASS_BY_HAND = "pass Trainer(optimizers=(emo_hf.create_optimizer(…), None), callbacks=[emo_hf.EmoCallback()])"
_ALL = "nothing: all values are printed"

PATCHES: dict[str, Patch] = {
    # Put by making an emo optimizer, or attach, where accelerate is imported; taken back by
    # emo_hf.integrations.accelerate.uninstall().
    "accelerate:Accelerator.backward": Patch("losses on their way to backward reach the optimizers", _SHOW),
    "accelerate:Accelerator.clip_grad_norm_": Patch(
        "the norm that clipping takes says whether gradients are finite", "nothing: a norm is taken at the step"
    ),
    "accelerate:Accelerator.prepare_model": Patch(
        "to know when all ranks go through backward together", "nothing: losses are exchanged at the step"
    ),
    "accelerate:Accelerator._prepare_deepspeed": Patch(
        "ZeRO-Offload keeps the optimizer that was asked for",
        'set "zero_force_ds_cpu_optimizer": false in the DeepSpeed configuration',
    ),
    # Put by feel_backward; taken back by remove() of the last handle.
    "torch:Tensor.backward": Patch("losses of a plain loop reach the optimizers", _SHOW),
    "torch.amp:GradScaler.scale": Patch("a scaled loss is known as it was before", _SHOW),
    # Put by emo_hf.register(); taken back by emo_hf.unregister().
    "transformers.training_args:OptimizerNames": Patch("--optim takes the family", _PASS_BY_HAND),
    "transformers.trainer_optimizer:_OPTIMIZER_HANDLERS": Patch("the Trainer makes them", _PASS_BY_HAND),
    "transformers.trainer:DEFAULT_CALLBACKS": Patch("EmoCallback is in every Trainer", _PASS_BY_HAND),
    # Put by emo_hf.register() and every EmoCallback; taken back by emo_hf.unregister().
    "transformers:Trainer.evaluation_loop": Patch("the average of the weights is evaluated", _BY_HAND),
    "transformers:Trainer.save_model": Patch("the average of the weights is saved", _BY_HAND),
    "transformers:Trainer._save_checkpoint": Patch(
        "the same, so that the optimizer's state belongs to the model beside it", _BY_HAND
    ),
    "transformers:Trainer._evaluate": Patch(
        "an evaluation in training, all of its sets, is heard", "optimizer.hear_evaluation(loss)"
    ),
    "transformers:Trainer._load_optimizer_and_scheduler": Patch(
        "options that a checkpoint overrides are named", "nothing: the checkpoint's options count"
    ),
    "transformers.trainer_callback:CallbackHandler.add_callback": Patch(
        "an EmoCallback comes before reporters, in the place of the registered one",
        "give EmoCallback before other callbacks",
    ),
    "transformers.trainer_callback:ProgressCallback.on_log": Patch("a few values are printed, not all", _ALL),
    "transformers.trainer_callback:PrinterCallback.on_log": Patch("a few values are printed, not all", _ALL),
    "transformers.utils.notebook:NotebookProgressCallback.on_log": Patch("two columns more", _ALL),
    "transformers.utils.notebook:NotebookProgressCallback.on_evaluate": Patch("two columns more", _ALL),
    # Put by `emo-hf run`, in its own processes only, until they end.
    "sys:meta_path": Patch(
        "the names are registered once the Trainer is imported", "call emo_hf.register() in the script"
    ),
}
"""`module:attribute` → what is changed there."""

_ours: dict[str, Any] = {}
"""Place → our method that was put there."""

_missing: set[str] = set()
"""Places that there are not, which has been said."""


def put(place: str, over: Callable[[Any], Any]) -> None:
    """Put a method of ours before another package's; doing it twice changes nothing.

    Args:
        place: a key of `PATCHES` that names a method.
        over: makes our method of theirs.
    """
    owner, name = _find(place)
    present, ours = getattr(owner, name, None), _ours.get(place)
    if present is None:
        if place not in _missing:
            _missing.add(place)
            why, if_moved = PATCHES[place]
            said = "%s is not there in this version: emo_hf cannot see to it that %s. Remedy: %s."
            logger.warning(said, place, why, if_moved)
        return
    if ours is not None and present is not getattr(ours, OURS):  # it is there, below what others put over it or not
        return
    while _is_ours(present):  # left by a former copy of this module, before a reload
        present = present.__wrapped__
    ours = functools.wraps(present)(over(present))
    setattr(ours, OURS, present)
    setattr(owner, name, ours)
    _ours[place] = ours


def take_back(place: str) -> None:
    """Give another package its own method again; twice changes nothing."""
    owner, name = _find(place)
    if place in _ours and vars(owner).get(name) is _ours[place]:
        setattr(owner, name, getattr(_ours.pop(place), OURS))


def _is_ours(method: Any) -> bool:
    # A wrapper of somebody else's has copied the mark, and stands before another method.
    return hasattr(method, OURS) and getattr(method, OURS) is getattr(method, "__wrapped__", None)


def _find(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name
