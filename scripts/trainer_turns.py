"""Trainer jobs that take turns of a few steps in one process, and the times of these turns."""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

import emo_hf
from emo_hf.integrations import accelerate as loss_tap


@dataclass(frozen=True)
class Turn:
    """What a turn took per step, in seconds.

    Attributes:
        wall: time.
        cpu: processor time.
        own: time in the functions that `Own` watches.
    """

    wall: float
    cpu: float
    own: float


class Own:
    """Adds up the time in what the jobs differ in; one job runs at a time."""

    seconds = 0.0

    @classmethod
    def watch(cls, owner: Any, name: str) -> None:
        """Have the time in a function counted.

        Args:
            owner: module or class that has it.
            name: its name.
        """
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                cls.seconds += time.perf_counter() - begin

        setattr(owner, name, watched)

    @classmethod
    def watch_all(cls) -> None:
        for optimizer in (torch.optim.AdamW, *emo_hf.FAMILY.values()):
            cls.watch(optimizer, "step")
        cls.watch(loss_tap, "feed")
        for event in ("on_log", "on_step_end"):
            cls.watch(emo_hf.EmoCallback, event)


@dataclass
class Turns(TrainerCallback):
    """Lets a job run for a few steps at a time, when it is called, and times it.

    Attributes:
        steps: how many steps a turn has.
        taken: the turns so far.
        ended: whether the job has come to its end, or failed.
        error: what it failed with.
    """

    steps: int
    taken: list[Turn] = field(default_factory=list)
    ended: bool = False
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._may_run = threading.Event()
        self._is_back = threading.Event()

    def give(self) -> None:
        """Let the job take its turn, and wait until it is over.

        Raises:
            RuntimeError: if the job failed.
        """
        self._is_back.clear()
        self._may_run.set()
        if not self.ended:
            self._is_back.wait()
        if self.error is not None:
            raise RuntimeError("a job failed") from self.error

    def _begin(self) -> None:
        self._may_run.wait()
        self._may_run.clear()
        self._since = time.perf_counter(), time.process_time(), Own.seconds

    def over(self) -> None:
        self._is_back.set()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin()

    # Not on_step_end: the step is logged after that.
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0 or state.global_step % self.steps:
            return
        now = time.perf_counter(), time.process_time(), Own.seconds
        self.taken.append(Turn(*((end - begin) / self.steps for begin, end in zip(self._since, now, strict=True))))
        self.over()
        self._begin()


def run(made: Trainer, turns: Turns) -> None:
    """The thread of a job."""
    try:
        made.train()
    except BaseException as error:  # noqa: BLE001 - whoever gives the turns raises it
        turns.error = error
    finally:
        turns.ended = True
        turns.over()
