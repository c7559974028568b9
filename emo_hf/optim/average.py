"""An average of the weights beside them: it is what is evaluated and saved, and the weights go on.

With the weights w after a step at age t, one sample in each t/64 … t/32 steps, and the k-th sample:

    w̄ ← w̄ + 8/(k + 7)·(w − w̄)

so that the weights of age t enter it with t⁷, and it lags by a ninth of the age. A sample costs about half a bare
step; over a run of 1,000 steps that is an eighth of each, and less in longer runs.

Source: averaging with polynomial decay, O. Shamir and T. Zhang, Stochastic Gradient Descent for Non-smooth
Optimization, 2013; that it takes the place of a schedule, A. Defazio et al., The Road Less Scheduled, 2024.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from emo_hf.laws import saved as codec
from emo_hf.optim import average_tensors as tensors
from emo_hf.optim.state_keys import AVERAGE

POWER = 8
SAMPLES = 32  # of the weights that are in the average, at least, once there are so many

ROUNDED, CPU = "rounded", "cpu"
KEPT = (ROUNDED, CPU)
"""What `average_weights` takes beside true and false."""

SAVED: Mapping[str, codec.Reader] = {"average_age": codec.count, "average_shown": codec.flag}

logger = logging.getLogger(__name__)

Groups = Sequence[Mapping[str, Any]]
States = Mapping[torch.Tensor, dict[str, Any]]


def share_of_weights(age: int) -> float:
    """What the weights after a step have of their average: 8/(k + 7) for the k-th sample, 0 for those that are none.

    Args:
        age: steps taken since the average began, this one among them; at least 1.
    """
    every = max(1 << (age // SAMPLES).bit_length() >> 1, 1)  # steps: a power of two
    return 0.0 if age % every else POWER / (age // every + POWER - 1)


class WeightAverage:
    """The average of one optimizer's weights, kept in its state, where checkpoints carry it.

    While it is shown, the parameters hold the average and the optimizer's state the weights; neither is there twice.
    Showing it and taking it back is all or nothing, whatever interrupts it.

    Args:
        kept: False for none; True for float32; `rounded` for the dtype of the parameters, rounded at random; `cpu` for
            float32 in main memory.
        is_default: whether the user has not asked for it: then it gives way to what it does not go with.

    Attributes:
        age: steps taken since it began.
    """

    def __init__(self, kept: bool | str, *, is_default: bool) -> None:
        self.kept = kept
        self.is_default = is_default
        self.age = 0
        self._shown = False
        self._exchange: tensors.Exchange | None = None  # one that was interrupted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_exchange": None}

    @property
    def is_shown(self) -> bool:
        """Whether the parameters hold the average now."""
        return self._shown

    def follow(self, groups: Groups, states: States) -> None:
        """Have the weights enter their average, after a step has been taken."""
        if not self.kept:
            return
        self.age += 1
        share = share_of_weights(self.age)
        if share:
            self._sample(groups, states, share)

    def begin_state(self, groups: Groups, states: States) -> None:
        """Make its tensors before the first step, for checkpoints that are read into them."""
        if self.kept:
            self._sample(groups, states, 1.0)

    def _sample(self, groups: Groups, states: States, share: float) -> None:
        moved = [param for group in groups for param in group["params"] if param.grad is not None or param in states]
        tensors.sample([(param, states[param]) for param in moved], share, self.kept, self.age)

    def show(self, groups: Groups, states: States) -> None:
        """Have the parameters hold the average, where there is one. Twice is as good as once."""
        self._finish_exchange()
        if not self._shown:
            self._change_places(groups, states, to_average=True)

    def hide(self, groups: Groups, states: States) -> None:
        """Have the parameters hold the weights again."""
        self._finish_exchange()
        if self._shown:
            self._change_places(groups, states, to_average=False)

    @contextmanager
    def shown(self, groups: Groups, states: States) -> Iterator[None]:
        """Shows the average for a while; where it was shown before, it stays so."""
        was_shown = self._shown
        self.show(groups, states)
        try:
            yield
        finally:
            if not was_shown:
                self.hide(groups, states)

    def _change_places(self, groups: Groups, states: States, *, to_average: bool) -> None:
        pairs = _averaged(groups, states)
        if pairs:
            self._exchange = tensors.Exchange(pairs, to_average=to_average)
            try:
                self._finish_exchange()
            except BaseException:  # Ctrl-C too: go through with it, then pass it on
                self._finish_exchange()
                raise

    def _finish_exchange(self) -> None:
        if self._exchange is not None:
            self._exchange.run()
            # One statement each: whatever comes in between leaves something that the next call understands.
            self._shown = self._exchange.to_average
            self._exchange = None

    def restart(self) -> None:
        """Begin anew with the weights after the next step."""
        self.age = 0

    def finish(self, groups: Groups, states: States) -> None:
        """Have the parameters hold the average for good; a new one begins with further steps."""
        self.show(groups, states)
        self.drop(groups, states)

    def drop(self, groups: Groups, states: States) -> None:
        """Leave in the parameters what they hold, and begin anew."""
        self._finish_exchange()
        for group in groups:
            for param in group["params"]:
                if param in states:
                    states[param].pop(AVERAGE, None)
        self.age, self._shown = 0, False

    def give_way(self, to: str) -> None:
        """Make room for something that does not go with an average of the weights, and say so.

        Args:
            to: what it is, for the message.

        Raises:
            ValueError: if the user asked for the average.
        """
        if not self.kept:
            return
        if not self.is_default:
            raise ValueError(f"{to} does not go with average_weights={self.kept}: leave one of them out")
        self.kept = False
        logger.warning("%s: training goes on without the average of the weights, which does not go with it", to)

    def state_dict(self) -> dict[str, Any]:
        """What is saved beside the tensors."""
        return {"average_age": self.age, "average_shown": self._shown}

    def read_state(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """What `state_dict` gave, checked.

        Raises:
            ValueError: if it is damaged, or was saved while the parameters held an average that is not kept here.
        """
        values = codec.read(saved, SAVED)
        if values["average_shown"] and not self.kept:
            raise ValueError(
                "this optimizer state was saved while the parameters held an average of the weights, and the weights "
                "lie in it: make the optimizer with average_weights=True, or resume from the model alone, which is "
                "the average"
            )
        return values if self.kept else {"average_age": 0, "average_shown": False}

    def put_state(self, values: Mapping[str, Any]) -> None:
        """Take over what `read_state` has read; the tensors are loaded by whoever loads the optimizer's state."""
        self.age, self._shown, self._exchange = values["average_age"], values["average_shown"], None


def _averaged(groups: Groups, states: States) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (param, states[param][AVERAGE])
        for group in groups
        for param in group["params"]
        if param in states and AVERAGE in states[param]
    ]
