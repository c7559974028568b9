"""The loss of one step from those of its micro-batches, on its way from the device to a float."""

from __future__ import annotations

import math
from numbers import Complex, Real
from typing import Any, SupportsFloat, TypeAlias

import torch

Loss: TypeAlias = "torch.Tensor | SupportsFloat"


def as_scalar(loss: Loss) -> torch.Tensor | float:
    """A detached loss of one element, as a 0-d tensor of at least float32, or a float.

    Args:
        loss: a number, or a real tensor with exactly one element, of any shape, dtype and device. Numbers beyond the
            range of a double become infinite.

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
        detached = loss.detach()
        if hasattr(detached, "full_tensor"):  # a DTensor under tensor parallelism: gathered or summed from the ranks
            detached = detached.full_tensor()
        scalar = detached.reshape(())
        # A copy: callers go on to divide or reset their loss in place.
        return scalar.clone() if scalar.dtype in (torch.float32, torch.float64) else scalar.float()
    if isinstance(loss, Real) or (
        hasattr(loss, "__float__") and not isinstance(loss, Complex) and not isinstance(loss, (str, bytes))
    ):
        try:
            return float(loss)
        except OverflowError:  # 10**400, say
            return math.inf
        except (TypeError, ValueError) as error:  # e.g. a numpy array of several elements
            raise ValueError(f"the loss must be a scalar, got {loss!r}") from error
    raise TypeError(f"the loss must be a number or a tensor with one element, got {type(loss).__name__}: {loss!r}")


class AccumulatedLoss:
    """Sums the micro-batch losses of one step, on the device they live on.

    Losses with a weight are averaged by it; losses without one were already scaled by whoever computed them, and
    their plain sum is the loss of the step, unless `average` says that nobody knows how many there will be.

    A sum on a CUDA device sets out for the host as soon as forward has produced it. `take` waits for that copy, which
    lies before backward in the stream, and so never for backward.

    Args:
        sent: whether the sum sets out so; False for one that may never be asked for.
    """

    def __init__(self, *, sent: bool = True) -> None:
        self._sent = sent
        self._sum: torch.Tensor | float | None = None
        self._on_its_way: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self._weight: float | None = None
        self._count = 0
        self._averaged = False  # whether losses without a weight are averaged instead of summed

    def __bool__(self) -> bool:
        return self._sum is not None

    @property
    def summed(self) -> int | None:
        """How many losses the plain sum has, None where it is a mean."""
        return None if self._weight is not None or self._averaged else self._count

    def average(self) -> None:
        """Take the mean of the losses of this step, also of those without a weight."""
        self._averaged = True

    def add(self, loss: Loss, weight: float | None = None) -> None:
        """Take in the loss of a micro-batch, as `as_scalar` takes it."""
        scalar = as_scalar(loss)
        self._count += 1
        if weight is not None:
            scalar = scalar * weight
            self._weight = weight + (self._weight or 0.0)
        if self._sum is None:
            self._sum = scalar
        elif isinstance(self._sum, torch.Tensor) and isinstance(scalar, torch.Tensor):
            self._sum = self._sum + scalar.to(self._sum.device)
        else:
            self._sum = float(self._sum) + float(scalar)
        self._send()

    def become(self, other: AccumulatedLoss) -> None:
        """Hold what `other` holds, and nothing else."""
        self._sum, self._weight = other._sum, other._weight
        self._count, self._averaged = other._count, other._averaged
        self._send()

    def value(self) -> torch.Tensor | float | None:
        """The loss of the step so far, on the device it lives on and without waiting for it; None if none was seen."""
        divisor = self._divisor()
        return self._sum if self._sum is None or divisor is None else self._sum / divisor

    def take(self) -> float | None:
        """The loss of the step, or None if none was seen; leaves nothing behind."""
        total, divisor = self._sum, self._divisor()
        if self._on_its_way is not None:
            total, arrival = self._on_its_way
            arrival.synchronize()
        self.clear()
        if total is None:
            return None
        return float(total) if divisor is None else float(total) / divisor

    def _divisor(self) -> float | None:
        return self._weight if self._weight is not None or not self._averaged else float(self._count)

    def clear(self) -> None:
        self._sum = self._weight = self._on_its_way = None
        self._count, self._averaged = 0, False

    def _send(self) -> None:
        total = self._sum
        sets_out = self._sent and type(total) is torch.Tensor and total.is_cuda
        self._on_its_way = _send_to_host(total) if sets_out else None  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_on_its_way": None}  # an event cannot be copied; the sum on the device can


def _send_to_host(scalar: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """Start to copy a CUDA scalar into pinned memory; the event says when it has arrived."""
    host = torch.empty((), dtype=scalar.dtype, pin_memory=True)
    host.copy_(scalar, non_blocking=True)
    return host, torch.cuda.current_stream(scalar.device).record_event()
