"""One emotion for all ranks: the loss of a step is averaged over them before the law is given it.

Each rank of a data-parallel job sees the loss of its own share of the batch, while all of them apply the same averaged
gradient. Were each to scale it by its own emotion, the copies of the weights would drift apart. So the ranks exchange
one pair per step, (loss, 1), and (0, 0) from a rank that has no loss; the sum of the first over the sum of the second
is the loss of the step. Backends hand the same sum to every rank to the last bit (DDP's copies of the weights rely on
it as well), so every rank takes the same decision, and a NaN on one rank is a NaN on all of them.
"""

from __future__ import annotations

import atexit
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from emo_hf.losses.accumulation import LossSum
from emo_hf.losses.micro_batches import MicroBatchWatch
from emo_hf.losses.same_options import GLOBAL as GLOBAL
from emo_hf.losses.same_options import LOCAL, SYNC, SameOptions

SYNC_MODES = (GLOBAL, LOCAL)

logger = logging.getLogger(__name__)


class RankMean:
    """Averages the loss of a step over all ranks of the default process group, or leaves each rank its own.

    Every rank must take part in every mean: the ranks step together, as data-parallel ranks do.

    Args:
        mode: `global`, one emotion for all ranks; `local`, each rank its own.
    """

    def __init__(self, mode: str = GLOBAL) -> None:
        if mode not in SYNC_MODES:
            raise ValueError(f"emo_sync must be one of {', '.join(SYNC_MODES)}, got {mode!r}")
        self.mode = mode
        self._under_way: tuple[LossSum, _Exchange] | None = None
        self._same_options, self._micro_batches = SameOptions(), MicroBatchWatch()
        self._has_said_local = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_under_way": None}  # what is under way cannot be copied

    @property
    def applies(self) -> bool:
        """Whether there are other ranks to share the loss with."""
        if not _has_other_ranks():
            return False
        if self.mode == LOCAL and not self._has_said_local:
            self._has_said_local = True
            if dist.get_rank() == 0:
                logger.warning(
                    "emo_sync=local: each of the %d ranks follows its own loss. This is for ranks that exchange "
                    "weights now and then; where they average gradients (DDP, FSDP, DeepSpeed) copies drift apart.",
                    dist.get_world_size(),
                )
        return self.mode == GLOBAL

    def compare_options(self, options: Callable[[], Mapping[str, str]], owner: str) -> None:
        """At the first step: refuse to go on if the ranks have different options; see `SameOptions.compare`."""
        if not self._same_options.is_settled and _has_other_ranks():
            self._same_options.compare({**options(), SYNC: self.mode}, owner)

    def start(self, loss: LossSum, device: torch.device | None) -> None:
        """Send the complete loss of a step on its way, so that it travels while backward computes.

        Not for the first step, in which the ranks have not compared their options yet: they meet in `take`. The
        device is that of the parameters, which is where the ranks meet if they can.
        """
        if self.applies and self._same_options.is_settled:
            self._under_way = (loss, _Exchange(loss, device))

    def cancel(self) -> None:
        """Forget what is under way: its step does not come, or its loss was not complete."""
        self._under_way = None

    def take(self, loss: LossSum, device: torch.device | None, *, alone: bool = False) -> float | None:
        """The loss of the step, averaged over the ranks, or None if none was seen.

        Other ranks are not waited for in a step `alone`, of which they know nothing.
        """
        under_way, self._under_way = self._under_way, None
        if alone or not self.applies:
            mean = loss.on_host()
        elif under_way is not None and under_way[0].parts == loss.parts:
            mean = under_way[1].mean()
        else:
            mean = _Exchange(loss, device).mean()
        self._micro_batches.look(mean, loss)
        return mean

    def on_any(self, flag: bool, device: torch.device | None) -> bool:
        """Whether a flag is up on any rank that the loss is shared with; every one of them must ask."""
        if not self.applies:
            return flag
        up = torch.tensor(float(flag), device=_meeting_place(device))
        dist.all_reduce(up, op=dist.ReduceOp.MAX)
        return bool(up)


def _has_other_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Exchange:
    """One sum of (loss, 1) over all ranks, under way from its making."""

    def __init__(self, loss: LossSum, preferred: torch.device | None) -> None:
        device = _meeting_place(preferred)
        doubles = device.type in ("cpu", "cuda")
        self._pair = torch.zeros(2, dtype=torch.float64 if doubles else torch.float32, device=device)
        value = loss.on_device()
        if value is not None:
            self._pair[0] = value
            self._pair[1] = 1.0
        if device.type == "cpu":
            _let_threads_finish_at_exit()
        work = dist.all_reduce(self._pair, async_op=True)
        self._wait, self._on_host = work.wait, self._pair
        if device.type == "cuda":
            # On a stream of its own: reading it at the step waits for forward and this exchange, and not for backward.
            self._on_host = torch.empty(2, dtype=self._pair.dtype, pin_memory=True)
            with torch.cuda.stream(_side_stream(self._pair.device)):
                work.wait()
                self._on_host.copy_(self._pair, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record()
            self._wait = copied.synchronize

    def mean(self) -> float | None:
        self._wait()
        total, count = self._on_host.tolist()
        return total / count if count else None


@functools.cache
def _let_threads_finish_at_exit() -> None:
    # gloo's threads let go of a collective's tensors a moment after it is done, which takes the interpreter's lock. A
    # process that ends in this moment is aborted ("terminate called without an active exception", torch 2.13), after
    # all its work, and the launcher takes the job for failed: seen in 1 of 50 short runs on a busy machine.
    atexit.register(time.sleep, 0.2)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _meeting_place(preferred: torch.device | None) -> torch.device:
    """A device that the backend of the default process group can sum on.

    The parameters' own, if it can; with offloaded parameters and NCCL alone, the rank's accelerator. The choice
    depends on nothing that differs between ranks.
    """
    able = dist.BackendConfig(dist.Backend(dist.get_backend_config())).get_device_backend_map()
    if preferred is not None and preferred.type in able:
        return preferred
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type in able:
        return torch.device(accelerator.type)  # the one that this rank has made its current device
    return torch.device("cpu")
