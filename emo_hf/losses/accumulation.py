"""One loss on its way from the device to a float, and the sum or mean of those that belong to one step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Complex, Real
from typing import Any, SupportsFloat, TypeAlias

import torch

Loss: TypeAlias = "torch.Tensor | SupportsFloat"
Groups: TypeAlias = "Iterable[Mapping[str, Any]]"

UNKNOWN = "unknown"  # a number, or a tensor without a graph: nothing tells whether backward came
AHEAD = "ahead"  # backward has not come to the loss, as far as is known
BEGUN = "begun"  # backward has begun at the loss, and has not ended, or has raised
DONE = "done"  # backward has passed through the loss to its end


def detached(loss: Any) -> Any:
    """A loss that a closure has returned: its backward pass is over."""
    return loss.detach() if isinstance(loss, torch.Tensor) else loss


def as_scalar(loss: Loss) -> torch.Tensor | float:
    """A detached loss of one element, as a 0-d tensor of at least float32, or a float.

    It is a number, infinite beyond the range of a double, or a real tensor of any shape, dtype and device.

    Raises:
        TypeError: if it is neither.
        ValueError: if the tensor has more or fewer elements than one.
    """
    if isinstance(loss, torch.Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"the loss must be a scalar, got a tensor of shape {tuple(loss.shape)}: reduce it, e.g. by loss.mean()"
            )
        if loss.is_complex():
            raise TypeError(f"the loss must be real, got a tensor of {loss.dtype}")
        scalar = loss.detach()
        if hasattr(scalar, "full_tensor"):  # a DTensor under tensor parallelism: gathered or summed from the ranks
            scalar = scalar.full_tensor()
        scalar = scalar.reshape(())
        # A copy: callers go on to divide or reset their loss in place.
        return scalar.clone() if scalar.dtype in (torch.float32, torch.float64) else scalar.float()
    try:
        if isinstance(loss, Real) or not isinstance(loss, (Complex, str, bytes)):
            return float(loss)
    except OverflowError:  # 10**400, say
        return math.inf
    except (TypeError, ValueError):  # no number; a numpy array of several
        pass
    raise TypeError(f"the loss must be a number or a tensor with one element, got {type(loss).__name__}: {loss!r}")


class OneLoss:
    """The loss of a micro-batch, and how far backward has come with it.

    A hook on the tensor tells the latter, also where backward begins at something made of it (loss / n, a scaled loss)
    or visits it within a larger pass. The hook holds what is here and nothing of the graph.

    On a CUDA device the loss sets out for the host as soon as forward has produced it. The copy lies before backward
    in the stream, so that whoever waits for it does not wait for backward.

    Args are those of `StepLoss.add`.
    """

    def __init__(
        self, loss: Loss, weight: float | None, groups: Groups, *, tapped: bool, last: bool, graph: torch.Tensor | None
    ) -> None:
        self.value, self.weight, self.tapped, self.last = as_scalar(loss), weight, tapped, last
        self.backward = UNKNOWN  # or `AHEAD`, `BEGUN`, `DONE`
        self.is_from_before = False  # whether the gradients were reset since it came in
        self._groups = groups
        self._with_gradient: torch.Tensor | None = None  # a parameter that had a gradient when backward was done
        self._changes = 0  # of that parameter by then
        self._on_host = _sent_to_host(self.value)
        root = loss if graph is None else graph
        if isinstance(root, torch.Tensor) and root.requires_grad:
            self.backward = AHEAD
            root.register_hook(self._begin)

    def _begin(self, _: torch.Tensor) -> None:
        self.backward = BEGUN
        if torch.compiler.is_compiling():  # backward itself is compiled, and cannot call back at its end
            self._end()
        else:
            torch.autograd.Variable._execution_engine.queue_callback(self._end)  # not if backward raises

    def _end(self) -> None:
        self.backward = DONE
        params = (param for group in self._groups for param in group["params"])
        self._with_gradient = next((param for param in params if param.grad is not None), None)
        self._changes = 0 if self._with_gradient is None else self._with_gradient._version

    @property
    def was_used(self) -> bool:
        """Whether the gradients have moved the parameters, as those of the first backward pass in SAM do."""
        return self._with_gradient is not None and self._with_gradient._version != self._changes

    @property
    def was_thrown_away(self) -> bool:
        """Whether a gradient that backward had left is gone, whoever has reset it (`model.zero_grad()`, say)."""
        return self._with_gradient is not None and self._with_gradient.grad is None and not self.was_used

    def arrived(self) -> torch.Tensor | float:
        """The loss in main memory."""
        if self._on_host is None:
            return self.value.cpu() if isinstance(self.value, torch.Tensor) else self.value
        copied, arrival = self._on_host
        arrival.synchronize()
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # An event cannot be copied, and a copy has other gradients.
        return self.__dict__ | {"_on_host": None, "_groups": (), "_with_gradient": None}


class LossSum:
    """The losses of one step: their mean by weight, or the sum of those that were scaled for it.

    Args:
        parts: the losses.
        averaged: whether those without a weight are averaged too, since nobody knows how many there will be.
    """

    def __init__(self, parts: Sequence[OneLoss], *, averaged: bool = False) -> None:
        self.parts = list(parts)
        weights = sum(part.weight for part in parts if part.weight is not None)
        self._divisor = weights or (float(len(parts)) if averaged else 1.0)
        self.is_sum = not (weights or averaged)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def on_device(self) -> torch.Tensor | float | None:
        """The loss of the step, without waiting for a device; None if there is none."""
        return self._total([part.value for part in self.parts]) / self._divisor if self.parts else None

    def on_host(self) -> float | None:
        """The loss of the step as a float."""
        return float(self._total([part.arrived() for part in self.parts])) / self._divisor if self.parts else None

    def _total(self, values: list[Any]) -> Any:
        total, *others = (v if p.weight is None else v * p.weight for p, v in zip(self.parts, values, strict=True))
        for value in others:
            are_tensors = isinstance(total, torch.Tensor) and isinstance(value, torch.Tensor)
            total = total + (value.to(total.device) if are_tensors else value)
        return total


def _sent_to_host(scalar: torch.Tensor | float) -> tuple[torch.Tensor, torch.cuda.Event] | None:
    """A copy of a CUDA scalar in pinned memory that is under way, and the event of its arrival."""
    if type(scalar) is not torch.Tensor or not scalar.is_cuda:
        return None
    host = torch.empty((), dtype=scalar.dtype, pin_memory=True)
    host.copy_(scalar, non_blocking=True)
    return host, torch.cuda.current_stream(scalar.device).record_event()
