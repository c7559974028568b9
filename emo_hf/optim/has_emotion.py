"""What an emo optimizer and an emotion that was attached to another one show of what is inside them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.laws.decision import Decision, EmotionView
from emo_hf.optim.emotion_engine import EmotionEngine


class HasEmotion:
    """Shows an emotion."""

    _engine: EmotionEngine

    def _present_engine(self) -> EmotionEngine:
        """The engine, with whatever has been loaded."""
        return self._engine

    @property
    def emotion(self) -> EmotionView:
        """A read-only snapshot of the emotion."""
        return self._present_engine().law.view()

    @property
    def emo_sync(self) -> str:
        """`global`, one emotion for all ranks, or `local`, each rank its own."""
        return self._engine.rank_mean.mode

    @property
    def decision(self) -> Decision:
        """What the last step was told."""
        return self._present_engine().law.decision

    @property
    def decisions(self) -> list[tuple[int, str]]:
        """The last things that the law has decided, in words: (step, what and why)."""
        return self._present_engine().law.decisions

    def saw_gradient_norm(self, norm: Any, params: Iterable[torch.Tensor]) -> None:
        """Tell of a gradient norm that clipping has taken, which says for nothing whether the gradients are finite.

        Args:
            norm: a number or a tensor of one element, of a norm of order 1 or more; taken of the gradients as they
                were or as they are, before or after they were clipped by it.
            params: the parameters whose gradients it is of.
        """
        self._present_engine().saw_gradient_norm(norm, params)

    def hear_evaluation(self, loss: float) -> None:
        """Tell the law the loss of an evaluation, the same on all ranks; most laws hear the training loss only."""
        self._present_engine().law.hear_evaluation(loss)

    def know_horizon(self, steps: int | None) -> None:
        """Tell the law how many steps the run has; None if nobody knows. Most laws do not ask."""
        self._present_engine().law.know_horizon(steps)


class ShowsAverage(HasEmotion):
    """Shows the average of the weights in their place, and the weights again."""

    @property
    @abstractmethod
    def _of_weights(self) -> Optimizer:
        """The optimizer whose parameters they are."""

    def eval(self) -> None:
        """Have the parameters hold the average of the weights, where the law keeps one (`average_weights=true`).

        Call it before an evaluation and before the model is saved; the Trainer does both. Twice is as good as once.
        """
        self._present_engine().show_average(self._of_weights)

    def train(self) -> None:
        """Have the parameters hold the weights, after `eval`. Call it before the forward pass of a training step."""
        self._present_engine().show_weights(self._of_weights)

    def forget_average(self) -> None:
        """Drop the average of the weights: the parameters hold what has been loaded since, and it begins anew."""
        self._present_engine().forget_average(self._of_weights)


def refuse_average(emo: HasEmotion | None, who: str) -> None:
    """Refuse an average of the weights where others put weights into the parameters, perhaps while it is shown.

    Args:
        emo: what the training has for an emotion.
        who: what does so.

    Raises:
        ValueError: if its law keeps one.
    """
    if emo is not None and emo.decision.average is not None:
        raise ValueError(
            f"{who} averages the weights over nodes by itself, and does not go with average_weights=true: leave one "
            "of them out"
        )
