"""accelerate: how a loss reaches an emo optimizer without the user's help.

The tap sits on `accelerate.Accelerator.backward`: every loss that the Trainer, TRL, diffusers-style loops and kohya
send to backward passes there, before DeepSpeed steps inside it and before fp16 scaling. It feeds the emo optimizers
that were prepared by that same accelerator. Making an emo optimizer in a process that has imported accelerate puts it
in place; nothing else does. `uninstall()` takes it away, and with EMO_HF_TAP=0 it never comes.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from emo_hf.integrations.deepspeed import keeping_the_optimizer
from emo_hf.integrations.patches import put, take_back
from emo_hf.optim.attachment import Attachment, attached_to
from emo_hf.optim.optimizer import EmoOptimizer

if TYPE_CHECKING:
    from accelerate import Accelerator

SWITCH = "EMO_HF_TAP"
"""Environment variable: 0 leaves accelerate alone."""

DEEPEST = 9
"""Within so many wrappers an optimizer is found."""

_tapping = False  # whether losses that pass are fed; our methods may lie below those that others put over them
_switched_off = False  # by `uninstall`, until the next `install`

_prepared: weakref.WeakKeyDictionary[Accelerator, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()
"""The models as they were wrapped: the accelerator itself keeps only what is inside."""


def wire() -> None:
    """When an optimizer is made: install the tap, if accelerate is imported and nobody has switched it off."""
    if "accelerate" in sys.modules and not _switched_off and os.environ.get(SWITCH) != "0":
        install()


def install() -> None:
    """Put our methods on `Accelerator`; see `patches.py`. Doing it twice changes nothing."""
    global _tapping, _switched_off
    _tapping, _switched_off = True, False
    for name, over in _METHODS.items():
        put(f"accelerate:Accelerator.{name}", over)


def uninstall() -> None:
    """Give the methods of `Accelerator` back as they were, for good: only `install()` brings the tap back."""
    global _tapping, _switched_off
    _tapping, _switched_off = False, True
    for name in _METHODS:
        take_back(f"accelerate:Accelerator.{name}")


def _tapped(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(self: Accelerator, loss: torch.Tensor, **kwargs: Any) -> Any:
        if not (_tapping and feed(self, loss, divided=kwargs.get("scale_wrt_gas", True))):
            return original(self, loss, **kwargs)
        with passed_on():
            return original(self, loss, **kwargs)

    return backward


def _clipping(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grad_norm_(self: Accelerator, parameters: Any, max_norm: Any, norm_type: Any = 2) -> Any:
        params = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        norm = original(self, params, max_norm, norm_type)
        if _tapping and norm is not None and float(norm_type) >= 1.0:
            for optimizer in emotions(self._optimizers):
                optimizer.saw_gradient_norm(norm, params)
        return norm

    return clip_grad_norm_


def _noted(original: Callable[..., Any]) -> Callable[..., Any]:
    def prepare_model(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        model = original(self, *args, **kwargs)
        _prepared.setdefault(self, weakref.WeakSet()).add(model)
        return model

    return prepare_model


_METHODS = {
    "backward": _tapped,
    "clip_grad_norm_": _clipping,
    "prepare_model": _noted,
    "_prepare_deepspeed": keeping_the_optimizer,
}


class _Depth(threading.local):
    value = 0


_depth = _Depth()


@contextmanager
def passed_on() -> Iterator[None]:
    """While a backward pass runs whose loss has been passed on: passes within it show `feel_backward` nothing."""
    _depth.value += 1
    try:
        yield
    finally:
        _depth.value -= 1


def is_outermost_pass() -> bool:
    """Whether a backward pass that begins here and now is within no other."""
    # Autograd's own threads, in which backward passes within others run on a GPU, were not made by Python.
    return not _depth.value and not isinstance(threading.current_thread(), threading._DummyThread)


def is_loss(value: Any) -> bool:
    """Whether it is a real tensor of one element; anything else is left to backward to judge."""
    return isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()


def feed(accelerator: Accelerator, loss: Any, *, divided: bool) -> bool:
    """Show a loss on its way to backward to the emo optimizers of an accelerator; whether there are any.

    Where backward divides losses by the accelerator's own number of accumulation steps, they are averaged, so that a
    last, shorter accumulation does not look like a sudden drop. Where that number is 1, the caller has scaled them:
    they are summed if the accelerator was told which is the last, as the Trainer tells it, and averaged in a loop that
    lets several of them pass as the last.
    """
    if not is_loss(loss):
        return False
    steps = accelerator.gradient_accumulation_steps
    weight = 1.0 / steps if divided and steps > 1 else None
    optimizers = emotions(accelerator._optimizers)
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


def unwrap(optimizer: Any) -> EmoOptimizer | Attachment | None:
    """What takes in the loss inside of any number of wrappers (accelerate, DeepSpeed, …), or None.

    Args:
        optimizer: an optimizer, a wrapper that holds one as `.optimizer`, or None.

    Returns:
        An emo optimizer, or the emotion that was attached to another one.
    """
    for _ in range(DEEPEST):  # a wrapper may hold itself
        found = optimizer if isinstance(optimizer, EmoOptimizer) else attached_to(optimizer)
        if found is not None:
            return found
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def emotions(optimizers: Any) -> list[EmoOptimizer | Attachment]:
    """What takes in the loss inside of several optimizers; those without an emotion are passed over."""
    return [emo for emo in map(unwrap, optimizers) if emo is not None]
