"""How a loss reaches an emo optimizer in loops that call `loss.backward()` themselves, where they ask for it.

`feel_backward(optimizer)` lays a method over `torch.Tensor.backward` for as long as its handle lives. It looks at the
loss before backward runs, as the tap on accelerate does, and waits for no device. Nothing here acts unasked.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.integrations.accelerate import unwrap
from emo_hf.integrations.felt_once import feels, unfelt
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.optimizer import EmoOptimizer

UNSCALED = "_emo_hf_unscaled"
"""Under which name a loss that a gradient scaler has multiplied keeps the loss as it was."""

_handles: list[FeelBackward] = []
_laid_over: list[tuple[Any, str, Any, Any]] = []  # class, name, our method, the one below it


def feel_backward(*optimizers: Optimizer) -> FeelBackward:
    """Have every `loss.backward()` felt by emo optimizers, from now on or within a `with` statement.

        with emo_hf.feel_backward(optimizer):
            train()

    What is felt: the loss of a backward pass that is called as a method of a real tensor with one element, before it
    runs. What is not: passes within another (gradient checkpointing), `torch.autograd.grad` and
    `torch.autograd.backward`, a loss that has passed the tap on accelerate, and one that leaves no gradient in the
    optimizer's parameters, as that of a discriminator does. Where gradients are kept elsewhere (FSDP, DeepSpeed) the
    last cannot be seen, and every loss counts.

    Several losses before a step are averaged, whether or not the loop divides them. A loss that a
    `torch.amp.GradScaler` has scaled is felt as it was before. What `observe` shows takes precedence.

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
    found = [unwrap(optimizer) for optimizer in optimizers]
    for given, emotional in zip(optimizers, found, strict=True):
        if emotional is None:
            raise TypeError(
                f"feel_backward takes optimizers with an emotion, got {type(given).__name__}: take an emo optimizer, "
                "or give this one an emotion by emo_hf.attach(optimizer)"
            )
    return FeelBackward([emotional for emotional in found if emotional is not None])


class FeelBackward:
    """The handle that `feel_backward` returns."""

    def __init__(self, optimizers: list[EmoOptimizer | Attachment]) -> None:
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]
        _handles.append(self)
        if not _laid_over:
            _lay_over()

    def optimizers(self) -> list[EmoOptimizer | Attachment]:
        """Those that are still there."""
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def remove(self) -> None:
        """Feel nothing more, and give torch its methods back with the last handle; twice changes nothing."""
        if self in _handles:
            _handles.remove(self)
        if not _handles:
            _take_off()

    def __enter__(self) -> FeelBackward:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _lay_over() -> None:
    for owner, name, over in ((torch.Tensor, "backward", _feeling), (torch.amp.GradScaler, "scale", _remembering)):
        below = getattr(owner, name)
        _laid_over.append((owner, name, over(below), below))
        setattr(owner, name, _laid_over[-1][2])


def _take_off() -> None:
    for owner, name, ours, below in _laid_over:
        if getattr(owner, name) is ours:  # else somebody has laid theirs over it; ours feels nothing any more
            setattr(owner, name, below)
    _laid_over.clear()


def _feeling(original: Any) -> Any:
    @functools.wraps(original)
    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (_handles and feels() and _is_loss(self, *args, **kwargs)):
            return original(self, *args, **kwargs)
        by_identity = {id(optimizer): optimizer for handle in _handles for optimizer in handle.optimizers()}
        before = [(optimizer, _gradients(optimizer)) for optimizer in by_identity.values()]
        for optimizer, gradients in before:
            # Gradients that cannot be seen would look as if they had been thrown away after the last micro-batch.
            optimizer.tap_loss(getattr(self, UNSCALED, self), weight=1.0, last=gradients is not None)
        with unfelt():
            result = original(self, *args, **kwargs)
        for optimizer, gradients in before:
            if gradients is not None and gradients == _gradients(optimizer):
                optimizer._engine.losses.take_back()  # it was of something else
        return result

    return backward


def _is_loss(tensor: torch.Tensor, gradient: Any = None, *_: Any, **kwargs: Any) -> bool:
    return gradient is None and tensor.requires_grad and tensor.numel() == 1 and not tensor.is_complex()


def _gradients(optimizer: EmoOptimizer | Attachment) -> list[tuple[int, int]] | None:
    """Stands for the gradients that there are; None where they may be kept elsewhere."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if not params or any(map(_keeps_gradients_elsewhere, params)):
        return None
    return [(id(param.grad), param.grad._version) for param in params if param.grad is not None]


def _keeps_gradients_elsewhere(param: torch.Tensor) -> bool:
    signs = ("full_tensor", "_is_flat_param", "_fsdp_flattened", "ds_id")  # FSDP2, FSDP1 in two ways, DeepSpeed
    return any(hasattr(param, sign) for sign in signs)


def _remembering(original: Any) -> Any:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if isinstance(outputs, torch.Tensor) and isinstance(scaled, torch.Tensor):
            setattr(scaled, UNSCALED, outputs.detach())
        return scaled

    return scale
