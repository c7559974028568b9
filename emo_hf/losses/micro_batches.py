"""A loss that jumps because a step had more or fewer micro-batches than the one before."""

from __future__ import annotations

import logging
import math

import torch.distributed as dist

from emo_hf.losses.accumulation import LossSum

logger = logging.getLogger(__name__)

JUMP = math.log(1.5)
"""|ln(L / previous L)| from which on a change is called a jump."""

REMEDY = (
    "Let all steps have as many micro-batches, divide by the number that a step really has, or show the losses by "
    "observe(loss, weight=1), which averages them."
)
REMEDY_OF_TRAINER = (
    "Where compute_loss or compute_loss_func makes the loss, divide its sum by num_items_in_batch; or let the number "
    "of batches be a multiple of gradient_accumulation_steps."
)


class MicroBatchWatch:
    """Says once that a summed loss has jumped with the number of its micro-batches.

    With n and m the numbers of micro-batches of this step and the last, and r = L / previous L, the number explains
    the jump if most of it goes with it:

        |ln r| > ln 1.5    and    |ln r − ln(n/m)| < |ln r| / 2
    """

    _last: tuple[float, int] | None = None
    _has_warned = False

    def look(self, loss: float | None, parts: LossSum) -> None:
        """Take note of the loss of a step, and of what it was made of."""
        last, self._last = self._last, None
        if self._has_warned or not loss or not math.isfinite(loss) or not (parts and parts.is_sum):
            return
        count = len(parts.parts)
        self._last = loss, count
        if last is None or last[1] == count or last[0] * loss <= 0.0:
            return
        jump = math.log(loss / last[0])
        if abs(jump) > JUMP and abs(jump - math.log(count / last[1])) < abs(jump) / 2:
            self._has_warned = True
            if not dist.is_initialized() or dist.get_rank() == 0:
                logger.warning(
                    "The loss of a step went from %.3g to %.3g as its micro-batches went from %d to %d: their losses, "
                    "as they were scaled for backward, are summed, and the emotion feels a sudden change. %s",
                    last[0], loss, last[1], count, REMEDY_OF_TRAINER if parts.parts[0].tapped else REMEDY,
                )  # fmt: skip
