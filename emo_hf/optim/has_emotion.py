"""What an emo optimizer and an emotion that was attached to another one show of what is inside them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim.optimizer import Optimizer

from emo_hf.laws.decision import Decision, EmotionView, Note
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
    def decisions(self) -> list[Note]:
        """The last things that the law has decided."""
        factor = self.decision.coefficient
        said = self._present_engine().law.decisions
        return [one if isinstance(one, Note) else _as_note(*one, factor) for one in said]

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

    @property
    def keeps_average(self) -> bool:
        """Whether there is an average of the weights, or will be after the first step."""
        return self._present_engine().keeps_average

    @contextmanager
    def average_shown(self) -> Iterator[None]:
        """Have the parameters hold the average inside, and outside what they held before."""
        if self._present_engine().shows_average:
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def finish_average(self) -> None:
        """Have the parameters hold the average for good; a new one begins with further training."""
        self.eval()
        self.forget_average()

    def drop_average(self) -> None:
        """Leave the parameters as they are; a new average begins with further training."""
        self.forget_average()

    def restart_average(self) -> None:
        """Begin the average anew."""
        self.train()
        self.forget_average()


def refuse_average(emo: HasEmotion | None, who: str) -> None:
    """Refuse an average of the weights where others put weights into the parameters, perhaps while it is shown.

    Args:
        emo: what the training has for an emotion.
        who: what does so.

    Raises:
        ValueError: if its law keeps one.
    """
    if emo is not None and emo._present_engine().keeps_average:
        raise ValueError(
            f"{who} averages the weights over nodes by itself, and does not go with average_weights=true: leave one "
            "of them out"
        )


def _as_note(step: int, text: str, factor: float) -> Note:
    kind, _, reason = text.partition(": ")
    return Note(step, kind, factor, reason)
