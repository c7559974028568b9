"""Which of the losses that come in belong to the next step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from emo_hf.losses.accumulation import AHEAD, BEGUN, DONE, UNKNOWN, Loss, LossSum, OneLoss


class StepLoss:
    """The losses since the last step: those that the user showed, and those that were tapped on their way to backward.

    A loss counts if backward has passed through it since the last step. One that was shown and then left
    (`continue`), or whose backward raised, is dropped when a step comes; one whose gradients were thrown away
    without a step (an fp16 overflow, a skipped batch) is dropped with them. Of numbers and tensors without a graph
    nobody knows whether backward came: they count.

    What the user shows wins over what was tapped. Tapped losses are summed where the framework says which
    micro-batch is the last: it has scaled them for that. A loss that comes after the last one, with no step between,
    is a sign of a loop that accumulates by itself, in steps of unlike numbers of micro-batches perhaps
    (`if step % N == 0: optimizer.step()` begins with a step of one, each loss divided by N all the same). Its losses
    are averaged.
    """

    def __init__(self) -> None:
        self._shown: list[OneLoss] = []
        self._tapped: list[OneLoss] = []
        self._has_stepped = False  # since the gradients were last reset

    @property
    def shown(self) -> bool:
        """Whether the user showed a loss for the next step."""
        return bool(self._shown)

    def add(self, loss: Loss, weight: float | None = None, groups: Iterable[Mapping[str, Any]] = ()) -> bool:
        """Take in a loss that the user shows.

        Args:
            loss: as `as_scalar` takes it.
            weight: its share of the step; None if it was scaled for a plain sum.
            groups: parameter groups in which its backward pass leaves gradients.

        Returns:
            Whether losses of a step that never came were dropped for it.
        """
        new = OneLoss(loss, weight, groups=groups)
        dropped = self._drop_what_was_thrown_away()
        self._shown.append(new)
        return dropped

    def tap(
        self,
        loss: Loss,
        weight: float | None = None,
        groups: Iterable[Mapping[str, Any]] = (),
        *,
        last: bool = True,
        graph: torch.Tensor | None = None,
    ) -> bool:
        """Take in a loss that is about to go to backward.

        Args:
            loss, weight, groups: as for `add`.
            last: whether it is the last micro-batch of the step.
            graph: the tensor that goes to backward, where `loss` is not it.

        Returns:
            Whether losses of a step that never came were dropped for it.
        """
        new = OneLoss(loss, weight, graph=graph, groups=groups, last=last)
        dropped = self._drop_what_was_thrown_away()
        self._tapped.append(new)
        return dropped

    def take_back(self) -> None:
        """Forget the loss tapped last, which turns out to be of something else; none if its step was taken since."""
        if self._tapped:
            self._tapped.pop()

    def _drop_what_was_thrown_away(self) -> bool:
        if not any(loss.was_thrown_away for loss in (*self._shown, *self._tapped)):
            return False
        self._shown, self._tapped = [loss for loss in self._shown if loss.backward is AHEAD], []
        return True

    def reset(self, had_gradients: bool) -> bool:
        """The gradients are about to be reset: losses that came with them go with them.

        A loss without a graph may also belong to gradients that are still to come, in the order observe, zero_grad,
        backward, step. It stays if no gradients are thrown away; if they are, it stays only if older ones, which the
        last reset has left, can have come with them.

        Args:
            had_gradients: whether there are any now.

        Returns:
            Whether losses went.
        """
        thrown_away = had_gradients and not self._has_stepped
        unknown = [loss for loss in self._shown if loss.backward is UNKNOWN]
        older = [loss for loss in unknown if loss.is_from_before]
        gone = [loss for loss in self._shown if loss.backward in (BEGUN, DONE) and not loss.was_used]
        gone += (older or unknown) if thrown_away else []
        gone += [loss for loss in self._tapped if not loss.was_used]
        self._shown = [loss for loss in self._shown if loss not in gone]
        self._tapped = [loss for loss in self._tapped if loss not in gone]
        for loss in self._shown:
            loss.is_from_before = True
        self._has_stepped = False
        return bool(gone)

    @property
    def of_next_step(self) -> LossSum:
        """The loss of the step as far as it has come in."""
        # Where parameters move within backward, it has begun at the loss of their step and is not done. Elsewhere a
        # pass that has begun and is not done has raised.
        under_way = torch._C._current_graph_task_id() != -1
        come = (UNKNOWN, DONE, BEGUN) if under_way else (UNKNOWN, DONE)
        shown = [loss for loss in self._shown if loss.backward in come]
        if not shown:  # shown after backward, or as a copy with a graph that backward does not visit
            shown = [loss for loss in self._shown if not loss.is_from_before] or self._shown
        if shown:
            return LossSum(shown)
        tapped = [loss for loss in self._tapped if loss.backward in (*come, AHEAD)]
        return LossSum(tapped, averaged=len(tapped) > 1 and tapped[0].last, tapped=True)

    def clear(self) -> None:
        """A step has taken its losses: leave nothing behind for the next."""
        self._shown, self._tapped, self._has_stepped = [], [], True
