"""How a loss reaches an emo optimizer without the user's help.

The tap sits on `accelerate.Accelerator.backward`: every loss that the Trainer, TRL, diffusers-style loops and kohya
send to backward passes there, before DeepSpeed steps inside it and before fp16 scaling. It feeds the emo optimizers
that were prepared by that same accelerator. Making an emo optimizer in a process that has imported accelerate puts it
in place; nothing else does. `uninstall()` takes it away, and with EMO_HF_TAP=0 it never comes.
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from emo_hf.integrations.deepspeed_offload import keeping
from emo_hf.integrations.felt_once import unfelt
from emo_hf.optim.attachment import Attachment, attached_to
from emo_hf.optim.optimizer import EmoOptimizer

if TYPE_CHECKING:
    from accelerate import Accelerator

SWITCH = "EMO_HF_TAP"
"""Environment variable: 0 leaves accelerate alone."""

OURS = "_emo_hf_original"
"""Under which name our methods keep those that they stand for."""

_tapping = False  # whether losses that pass are fed; our methods may lie below those that others put over them
_switched_off = False  # by `uninstall`, until the next `install`
_originals: dict[str, tuple[Any, Any]] = {}  # name of a method → (ours, what it stands for)

_prepared: weakref.WeakKeyDictionary[Accelerator, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()
"""The models as they were wrapped: the accelerator itself keeps only what is inside."""


def wire() -> None:
    """Install the tap if this process has imported accelerate and nobody has switched it off.

    It is called when an optimizer is made.
    """
    if "accelerate" in sys.modules and not _switched_off and os.environ.get(SWITCH) != "0":
        install()


def install() -> None:
    """Put the tap on `Accelerator.backward`, and note what clipping finds and what `prepare_model` makes.

    Doing it twice changes nothing.
    """
    from accelerate import Accelerator

    global _tapping, _switched_off
    _tapping, _switched_off = True, False
    over_methods = {
        "backward": _tapped,
        "clip_grad_norm_": _clipping,
        "prepare_model": _noted,
        "_prepare_deepspeed": keeping,
    }
    for name, over in over_methods.items():
        present = getattr(Accelerator, name)
        if name not in _originals:
            present = _without_former(present)
            _originals[name] = over(present), present
            setattr(_originals[name][0], OURS, present)
            setattr(Accelerator, name, present)
        ours, original = _originals[name]
        if present is original:  # by now, or again, if somebody has put it back
            setattr(Accelerator, name, ours)


def _without_former(method: Any) -> Any:
    """What lies below a method of ours that a former copy of this module has left there, as before a reload."""
    while hasattr(method, OURS):
        method = getattr(method, OURS)
    return method


def _tapped(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backward(self: Accelerator, loss: torch.Tensor, **kwargs: Any) -> Any:
        if not (_tapping and feed(self, loss, divided=kwargs.get("scale_wrt_gas", True))):
            return original(self, loss, **kwargs)
        with unfelt():  # it has been felt: what `feel_backward` watches is not to feel it once more
            return original(self, loss, **kwargs)

    return backward


def _clipping(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def clip_grad_norm_(self: Accelerator, parameters: Any, max_norm: Any, norm_type: Any = 2) -> Any:
        params = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        norm = original(self, params, max_norm, norm_type)
        if _tapping and norm is not None and float(norm_type) >= 1.0:
            for optimizer in emo_optimizers(self):
                optimizer.saw_gradient_norm(norm, params)
        return norm

    return clip_grad_norm_


def _noted(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def prepare_model(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        model = original(self, *args, **kwargs)
        _prepared.setdefault(self, weakref.WeakSet()).add(model)
        return model

    return prepare_model


def uninstall() -> None:
    """Give the methods of `Accelerator` back as they were, for good: only `install()` brings the tap back.

    Where somebody has put a method of their own over ours, theirs stays, and ours passes losses on unseen.
    """
    from accelerate import Accelerator

    global _tapping, _switched_off
    _tapping, _switched_off = False, True
    for name, (ours, original) in list(_originals.items()):
        if vars(Accelerator).get(name) is ours:
            setattr(Accelerator, name, original)
            del _originals[name]


def feed(accelerator: Accelerator, loss: Any, *, divided: bool = True) -> bool:
    """Show a loss on its way to backward to the emo optimizers of an accelerator; whether there are any.

    Args:
        accelerator: the accelerator whose backward it is sent to.
        loss: what is sent; anything but a real tensor of one element is left to backward to judge.
        divided: whether backward will divide it by the accelerator's own number of accumulation steps. Such losses are
            averaged, so that a last, shorter accumulation does not look like a sudden drop. Where that number is 1,
            the caller has scaled them: they are summed if the accelerator was told which is the last, as the Trainer
            tells it, and averaged in a loop that lets several of them pass as the last.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.is_complex():
        return False
    steps = accelerator.gradient_accumulation_steps
    weight = 1.0 / steps if divided and steps > 1 else None
    optimizers = list(emo_optimizers(accelerator))
    for optimizer in optimizers:
        optimizer.tap_loss(
            loss,
            weight,
            last=accelerator.sync_gradients,
            together=_ranks_meet(accelerator),
            in_parts=accelerator.distributed_type == "DEEPSPEED",
        )
    return bool(optimizers)


def _ranks_meet(accelerator: Accelerator) -> bool:
    """Whether every rank goes through the backward pass that comes now, since it averages gradients.

    Inside of DDP's no_sync() ranks need not even run the same number of them. Where we cannot know, they may not.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return False  # there are no others
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        return True
    models = _prepared.get(accelerator, ())
    flags = [model.require_backward_grad_sync for model in models if hasattr(model, "require_backward_grad_sync")]
    return bool(flags) and all(flags)


def emo_optimizers(accelerator: Accelerator) -> Iterator[EmoOptimizer | Attachment]:
    """The optimizers with an emotion that an accelerator has prepared."""
    for prepared in accelerator._optimizers:
        emotional = unwrap(prepared)
        if emotional is not None:
            yield emotional


def unwrap(optimizer: Any) -> EmoOptimizer | Attachment | None:
    """What takes in the loss inside of any number of wrappers (accelerate, DeepSpeed, …), or None.

    Args:
        optimizer: an optimizer, a wrapper that holds one as `.optimizer`, or None.

    Returns:
        An emo optimizer, or the emotion that was attached to another one.
    """
    seen: list[Any] = []
    while optimizer is not None and all(optimizer is not known for known in seen):
        if isinstance(optimizer, EmoOptimizer):
            return optimizer
        attachment = attached_to(optimizer)
        if attachment is not None:
            return attachment
        seen.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", None)
    return None
