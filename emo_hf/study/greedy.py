"""transformers' `greedy` schedule, told the training loss of each step: with a loss per evaluation it hardly moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.optimization import GreedyLR


class GreedyOnTrainingLoss:
    """Stands in for a GreedyLR that the Trainer would step at evaluations only.

    Args:
        schedule: the schedule.
        loss: gives the training loss of the step that was just taken.
    """

    def __init__(self, schedule: GreedyLR, loss: Callable[[], float]) -> None:
        self._schedule = schedule
        self._loss = loss

    def step(self, metrics: Any = None) -> None:
        self._schedule.step(self._loss())

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self._schedule.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._schedule.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._schedule.load_state_dict(state)
