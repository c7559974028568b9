"""Plain loops: how a loss reaches an emo optimizer where `loss.backward()` is called, if one asks for it.

While a handle of `feel_backward(optimizer)` is there, a method of ours stands before `torch.Tensor.backward`. It takes
the loss in before backward runs, as the tap on accelerate does, and waits for no device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.integrations.accelerate import is_loss, is_outermost_pass, passed_on, unwrap
from emo_hf.integrations.patches import put, take_back
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.optimizer import EmoOptimizer

UNSCALED = "_emo_hf_unscaled"
"""Under which name a loss that a gradient scaler has multiplied keeps the loss as it was."""

ELSEWHERE = ("full_tensor", "_is_flat_param", "_fsdp_flattened", "ds_id")
"""Attributes of parameters whose gradients are kept elsewhere: FSDP2, FSDP1 in two ways, DeepSpeed."""

_handles: list[FeelBackward] = []


def feel_backward(*optimizers: Optimizer) -> FeelBackward:
    """Have the loss of every `loss.backward()` reach emo optimizers, from now on or within a `with` statement.

        with emo_hf.feel_backward(optimizer):
            train()

    What counts: the loss of a backward pass that is called as a method of a real tensor with one element. What does
    not: passes within another (gradient checkpointing), `torch.autograd.grad` and `torch.autograd.backward`, a loss
    that has passed the tap on accelerate, and one that leaves no gradient in the optimizer's parameters, as that of a
    discriminator does. Where gradients are kept elsewhere (FSDP, DeepSpeed) the last cannot be seen, and every loss
    counts.

    Several losses before a step are averaged, whether or not the loop divides them. A loss that a
    `torch.amp.GradScaler` has scaled counts as it was before. What `observe` shows takes precedence.

    Args:
        optimizers: emo optimizers, optimizers with an attached emotion, or wrappers that hold such as `.optimizer`.
            They are not kept alive.

    Returns:
        A handle with `remove()`; as a context manager it is removed at the end.

    Raises:
        TypeError: if there is none, or one of them has no emotion.
    """
    if not optimizers:
        raise TypeError("feel_backward takes one optimizer or several, got none")
    found = []
    for given in optimizers:
        emotional = unwrap(given)
        if emotional is None:
            raise TypeError(
                f"feel_backward takes optimizers with an emotion, got {type(given).__name__}: take an emo optimizer, "
                "or give this one an emotion by emo_hf.attach(optimizer)"
            )
        found.append(emotional)
    return FeelBackward(found)


class FeelBackward:
    """The handle that `feel_backward` returns."""

    def __init__(self, optimizers: list[EmoOptimizer | Attachment]) -> None:
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]
        _handles.append(self)
        for place, over in _METHODS.items():
            put(place, over)

    def optimizers(self) -> list[EmoOptimizer | Attachment]:
        """Those that are still there."""
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def remove(self) -> None:
        """Show the optimizers nothing more, and give torch its methods back with the last handle."""
        if self in _handles:
            _handles.remove(self)
        for place in _METHODS if not _handles else ():
            take_back(place)

    def __enter__(self) -> FeelBackward:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class LossOfPass:
    """Shows the loss of a backward pass, and takes it back from optimizers that the pass gave no gradients to.

    Args:
        optimizers: those that may be concerned.
    """

    def __init__(self, optimizers: Iterable[EmoOptimizer | Attachment]) -> None:
        self._before = [(optimizer, _gradients(optimizer)) for optimizer in optimizers]

    def show(self, loss: torch.Tensor, **how: Any) -> None:
        """Before the pass; `how` is as for `tap_loss`."""
        for optimizer, _ in self._before:
            optimizer.tap_loss(loss, weight=1.0, **how)

    def end(self) -> None:
        """After the pass."""
        for optimizer, before in self._before:
            now = _gradients(optimizer)
            if before is not None and now is not None and all(map(_is_same, before, now)):
                optimizer._engine.losses.take_back()


def _gradients(optimizer: EmoOptimizer | Attachment) -> list[tuple[torch.Tensor | None, int]] | None:
    """Each parameter's gradient and how often it was changed; None where gradients may be kept elsewhere."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if not params or any(hasattr(param, sign) for param in params for sign in ELSEWHERE):
        return None
    return [(param.grad, 0 if param.grad is None else param.grad._version) for param in params]


def _is_same(before: tuple[Any, int], now: tuple[Any, int]) -> bool:
    return before[0] is now[0] and before[1] == now[1]


def _passing_on(original: Any) -> Any:
    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        gradient = args[0] if args else kwargs.get("gradient")
        counts = gradient is None and self.requires_grad and is_loss(self)
        if not (_handles and counts and is_outermost_pass()):
            return original(self, *args, **kwargs)
        optimizers = {id(optimizer): optimizer for handle in _handles for optimizer in handle.optimizers()}
        loss = LossOfPass(optimizers.values())
        loss.show(getattr(self, UNSCALED, self), graph=self)
        with passed_on():
            result = original(self, *args, **kwargs)
        loss.end()
        return result

    return backward


def _remembering(original: Any) -> Any:
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if isinstance(outputs, torch.Tensor) and isinstance(scaled, torch.Tensor):
            setattr(scaled, UNSCALED, outputs.detach())
        return scaled

    return scale


_METHODS = {"torch:Tensor.backward": _passing_on, "torch.amp:GradScaler.scale": _remembering}
