"""Which of the losses that come in belong to the next step."""

from __future__ import annotations

import torch

from emo_hf.losses.accumulation import AHEAD, BEGUN, DONE, UNKNOWN, Groups, Loss, LossSum, OneLoss


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
        self._losses: list[OneLoss] = []
        self._has_stepped = False  # since the gradients were last reset

    @property
    def shown(self) -> list[OneLoss]:
        """What the user showed for the next step."""
        return [one for one in self._losses if not one.tapped]

    @property
    def _tapped(self) -> list[OneLoss]:
        return [one for one in self._losses if one.tapped]

    def add(
        self,
        loss: Loss,
        weight: float | None = None,
        groups: Groups = (),
        *,
        tapped: bool = False,
        last: bool = True,
        graph: torch.Tensor | None = None,
    ) -> bool:
        """Take in a loss.

        Args:
            loss: as `as_scalar` takes it.
            weight: its share of the step; None if it was scaled so that the sum of all is the loss of the step.
            groups: parameter groups in which its backward pass leaves gradients.
            tapped: whether it is about to go to backward, and not shown by the user.
            last: whether a framework has said that no other micro-batch belongs to the step.
            graph: the tensor that backward passes through, where `loss` is not it.

        Returns:
            Whether losses of a step that never came were dropped for it.
        """
        new = OneLoss(loss, weight, groups, tapped=tapped, last=last, graph=graph)
        thrown_away = any(one.was_thrown_away for one in self._losses)
        if thrown_away:
            self._losses = [one for one in self.shown if one.backward is AHEAD]
        self._losses.append(new)
        return thrown_away

    def take_back(self) -> None:
        """Forget the loss tapped last, which turns out to be of something else; none if its step was taken since."""
        for one in self._tapped[-1:]:
            self._losses.remove(one)

    def reset(self, had_gradients: bool) -> bool:
        """The gradients, if there are any, are about to be reset: losses that came with them go. Whether any went.

        A loss without a graph may also belong to gradients that are still to come, in the order observe, zero_grad,
        backward, step. It stays if no gradients are thrown away; if they are, it stays only if older ones, which the
        last reset has left, can have come with them.
        """
        gone = [one for one in self._losses if one.tapped or one.backward in (BEGUN, DONE)]
        if had_gradients and not self._has_stepped:  # they are thrown away
            unknown = [one for one in self.shown if one.backward is UNKNOWN]
            gone += [one for one in unknown if one.is_from_before] or unknown
        kept = [one for one in self._losses if one.was_used or one not in gone]
        went = len(kept) < len(self._losses)
        self._losses, self._has_stepped = kept, False
        for one in kept:
            one.is_from_before = True
        return went

    @property
    def of_next_step(self) -> LossSum:
        """The loss of the step as far as it has come in."""
        # Where parameters move within backward, it has begun at the loss of their step and is not done. Elsewhere a
        # pass that has begun and is not done has raised.
        under_way = torch._C._current_graph_task_id() != -1
        come = (UNKNOWN, DONE, BEGUN) if under_way else (UNKNOWN, DONE)
        shown = [one for one in self.shown if one.backward in come]
        if not shown:  # shown after backward, or as a copy with a graph that backward does not visit
            shown = [one for one in self.shown if not one.is_from_before] or self.shown
        if shown:
            return LossSum(shown)
        tapped = [one for one in self._tapped if one.backward in (*come, AHEAD)]
        return LossSum(tapped, averaged=len(tapped) > 1 and tapped[0].last)

    def clear(self) -> None:
        """A step has taken its losses: leave nothing behind for the next."""
        self._losses, self._has_stepped = [], True
