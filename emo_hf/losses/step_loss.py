"""Which of the losses that come in belong to the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from emo_hf.losses.accumulation import AccumulatedLoss, Loss

Mark: TypeAlias = "tuple[Any, int] | None"
"""Stands for the gradients at a moment: another one after each backward pass, None while there are none."""

Gradients: TypeAlias = "Callable[[], Mark]"
"""Tells the mark of this moment."""


class StepLoss:
    """The losses since the last step: those that the user showed, and those that were tapped on their way to backward.

    The user's own word wins over the tap. A loss whose gradients were thrown away without a step (an fp16 overflow, a
    skipped batch) is dropped with them.

    Tapped losses are summed where the framework says which micro-batch is the last: it has scaled them for that. A
    loss that comes after the last one, with no step between, is a sign of a loop that accumulates by itself, in steps
    of unlike numbers of micro-batches perhaps (`if step % N == 0: optimizer.step()` begins with a step of one, each
    loss divided by N all the same). Its losses are averaged.
    """

    def __init__(self) -> None:
        self._shown = AccumulatedLoss()
        self._shown_latest = AccumulatedLoss(sent=False)  # the part of it that no backward pass has followed yet
        self._backward_followed = False  # whether there is another part
        self._shown_at: Mark = None
        self._tapped = AccumulatedLoss()
        self._tapped_before = AccumulatedLoss(sent=False)  # what there was before the latest of them
        self._tapped_last = False  # whether the last micro-batch of the step has passed the tap
        self._tapped_others = False  # whether ones that were not the last have

    @property
    def shown(self) -> bool:
        """Whether the user showed a loss for the next step."""
        return bool(self._shown)

    def show(self, loss: Loss, weight: float | None, gradients: Gradients) -> bool:
        """Take in a loss that the user shows; whether losses of a step that never came were dropped for it."""
        now = gradients()
        stale = self._is_stale(now)
        if stale:
            self.clear()
        self._notice_backward(now)
        self._shown.add(loss, weight)
        self._shown_latest.add(loss, weight)
        self._shown_at = now
        return stale

    def tap(self, loss: Loss, weight: float | None, last: bool, gradients: Gradients) -> bool:
        """Take in a loss before its backward pass; whether losses of a step that never came were dropped for it."""
        stale = self._is_stale(gradients())
        if stale:  # and so is whatever was shown: it would have been noticed by `show` if it were newer
            self.clear()
        self._tapped_before.become(self._tapped)
        if self._tapped and self._tapped_last and not self._tapped_others:
            self._tapped.average()
        self._tapped.add(loss, weight)
        self._tapped_last = last
        self._tapped_others = self._tapped_others or not last
        return stale

    def untap(self) -> None:
        """Forget the loss tapped last, which turns out to be of something else; none if its step was taken since."""
        if self._tapped:
            self._tapped.become(self._tapped_before)

    def _is_stale(self, now: Mark) -> bool:
        # FSDP2 and DeepSpeed keep the gradients of all but the last micro-batch elsewhere: only when that one has
        # passed do missing gradients mean that they were thrown away.
        return bool(self._tapped) and self._tapped_last and now is None

    def gradients_go(self, gradients: Gradients) -> bool:
        """The gradients are about to be reset; whether losses went with them.

        A tapped loss always came with them. A shown one did if there was a backward pass since: in the order observe,
        zero_grad, backward, step the loss belongs to the gradients that are still to come.
        """
        went = bool(self._tapped)
        self._clear_tapped()
        now = gradients()
        if now is not None:
            self._notice_backward(now)
        if self._backward_followed:
            went = True
            self._shown.become(self._shown_latest)
            self._backward_followed = False
        return went

    def _notice_backward(self, now: Mark) -> None:
        if self._shown and now != self._shown_at:
            self._backward_followed = True
            self._shown_latest.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shown_at": None}  # a copy has other gradients

    @property
    def of_next_step(self) -> AccumulatedLoss:
        """The loss of the step as far as it has come in."""
        return self._shown or self._tapped

    def clear(self) -> None:
        """Leave nothing behind for the next step."""
        self._shown.clear()
        self._shown_latest.clear()
        self._shown_at = None  # torch cannot swap tensors to which weak references are held
        self._backward_followed = False
        self._clear_tapped()

    def _clear_tapped(self) -> None:
        self._tapped.clear()
        self._tapped_before.clear()
        self._tapped_others = False
