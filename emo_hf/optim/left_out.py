"""Elements whose gradient is NaN or infinite are left out of a step: neither they nor their state change."""

from __future__ import annotations

import torch

from emo_hf.optim.finite import PIECE, norms_not_finite
from emo_hf.optim.pieces import bounded
from emo_hf.optim.sharding import local_elements, placed_like
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation

LEAVE_OUT, SKIP_STEP, PROPAGATE = "leave_out", "skip_step", "propagate"
NONFINITE = (LEAVE_OUT, SKIP_STEP, PROPAGATE)
"""What the option `nonfinite` takes."""


class LeftOut:
    """Counts the elements that were left out, without waiting for a device.

    Attributes:
        count: how many there have been, on this rank; reading it waits for the devices.
    """

    def __init__(self) -> None:
        self._here = 0
        self._on_devices: dict[torch.device, torch.Tensor] = {}

    def add(self, count: int | torch.Tensor) -> None:
        """Count some more."""
        self._here += int(count)

    def counter(self, device: torch.device) -> torch.Tensor:
        """An int64 without dims on a device, for kernels to add to."""
        if device not in self._on_devices:
            self._on_devices[device] = torch.zeros((), dtype=torch.int64, device=device)
        return self._on_devices[device]

    @property
    def count(self) -> int:
        return self._here + sum(int(counter) for counter in self._on_devices.values())

    @property
    def is_on_devices(self) -> bool:
        """Whether some of the count lies on a device."""
        return bool(self._on_devices)

    @property
    def count_in_main_memory(self) -> int:
        """What is known without waiting."""
        return self._here


def not_finite(name: str, step: int, found: str) -> str:
    """What to say of the first gradients that are not finite.

    Args:
        name: the optimizer's class.
        step: how many losses it has felt.
        found: which parameters they are of.
    """
    return (
        f"{name}: gradients are NaN or infinite by step {step}: "
        f"{found or 'they are gone by now, so that nobody knows whose'}. Such elements, or the whole step with "
        "nonfinite='skip_step', are left out; how many they are is logged as emo/nonfinite_gradients. Where it goes "
        "on, look at the data of such batches, the learning rate, or fp16 without a GradScaler"
    )


def leaving_out(update: Implementation, careful: Implementation) -> Implementation:
    """`update` for parameters whose gradients are finite; `careful`, which looks at each element, for the others.

    On a device it waits for the norms of the gradients.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        bad = set(norms_not_finite(bucket.grads)) if h.left_out is not None else ()
        if not bad:
            return update(bucket, h)
        careful(bucket.some(sorted(bad)), h)
        others = bucket.some([i for i in range(len(bucket)) if i not in bad])
        return update(others, h) if len(others) else None

    return run


def masked(update: Implementation, *, elementwise: bool = False) -> Implementation:
    """`update`, once, with 0 for what is not finite; such elements, and their state, are put back as they were.

    DTensors may be among them, and `update` may have collectives: it is called in the same way on all ranks. If it is
    elementwise, it is called for pieces of bounded size.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        if h.left_out is None:
            return update(bucket, h)
        grads = [placed_like(grad, param) for param, grad, _ in bucket]
        put_back = []
        for i in norms_not_finite(list(map(local_elements, grads))):
            finite = local_elements(grads[i]).isfinite()
            own_param = local_elements(bucket.params[i])
            values = [own_param, *map(local_elements, bucket.states[i].values())]
            each = [value for value in values if value.shape == own_param.shape]
            put_back.append((finite, [(value, value.clone()) for value in each]))
            grads[i] = grads[i].clone()
            local_elements(grads[i]).masked_fill_(~finite, 0.0)
            h.left_out.add(finite.numel() - finite.sum())
        update(Bucket(bucket.params, grads, bucket.states), h)
        for finite, changed in put_back:
            for value, before in changed:
                value.copy_(torch.where(finite, value, before))
        return None

    return bounded(run, PIECE) if elementwise else run
