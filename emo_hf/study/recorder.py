"""Watches a Trainer at work: losses, emotion, times, memory, and what shows that two runs were paired."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.optimization import GreedyLR

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.ablation import read_ablation
from emo_hf.study.greedy import GreedyOnTrainingLoss
from emo_hf.study.guards import GuardCallback
from emo_hf.trainer.self_stop import SelfStop

FIRST_BATCHES = 32
"""Of so many batches the content is summed up, to see that two runs had the same data in the same order."""


class Recorder(TrainerCallback):
    """Collects what a run is judged by.

    Args:
        trainer: the Trainer, before it trains. Its training step and its making of the schedule are looked at.
        guard: what may skip steps, added to the Trainer before this.
    """

    def __init__(self, trainer: Trainer, guard: GuardCallback | None = None) -> None:
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.scalars: list[float] = []
        self.factors: list[float] = []
        self.decay_factors: list[float] = []
        self.decisions: list[tuple[int, str]] = []
        self.skipped: list[int] = []
        self.floor = 0.0
        self.raw_stop: int | None = None
        self.believed_stop: int | None = None
        self.law: str | None = None
        self.optimizer_seconds: list[float] = []
        self.evaluation_seconds = 0.0
        self.weights = checksum(parameter for _, parameter in sorted(trainer.model.named_parameters()))
        self.batches: list[int] = []
        self.state_bytes = 0
        self._pending: list[torch.Tensor] = []
        self._believes = SelfStop()
        self._guard = guard
        self._step_began = 0.0
        self._look_at(trainer)

    def _look_at(self, trainer: Trainer) -> None:
        training_step, evaluate, create_scheduler = trainer.training_step, trainer.evaluate, trainer.create_scheduler

        def watched_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            if len(self.batches) < FIRST_BATCHES:
                self.batches.append(checksum(tensors_in(inputs)))
            loss: torch.Tensor = training_step(model, inputs, *args, **kwargs)
            self._pending.append(loss)
            return loss

        def timed_evaluate(*args: Any, **kwargs: Any) -> Any:
            began = _now()
            try:
                return evaluate(*args, **kwargs)
            finally:
                self.evaluation_seconds += _now() - began

        def watched_scheduler(*args: Any, **kwargs: Any) -> Any:
            schedule = create_scheduler(*args, **kwargs)
            if isinstance(schedule, GreedyLR):
                trainer.lr_scheduler = schedule = GreedyOnTrainingLoss(schedule, self._loss_of_step)
            return schedule

        trainer.training_step, trainer.evaluate = watched_step, timed_evaluate
        trainer.create_scheduler = watched_scheduler

    def _loss_of_step(self) -> float:
        return float(sum(loss.item() for loss in self._pending))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._pending.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step_began = _now()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.optimizer_seconds.append(_now() - self._step_began)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        self.losses.append(self._loss_of_step())
        self._pending.clear()
        emo, step = unwrap(optimizer), state.global_step
        if (self._guard is not None and self._guard.skips) or (emo is not None and emo.decision.skip):
            self.skipped.append(step)
        if emo is None:
            return
        view, decision = emo.emotion, emo.decision
        self._note(emo.decisions)
        self.law = view.law
        self.scalars.append(view.scalar)
        self.factors.append(decision.coefficient)
        self.decay_factors.append(decision.decay_factor)
        self.floor = decision.floor
        if view.should_stop and self.raw_stop is None:
            self.raw_stop = step
        warmup = args.get_warmup_steps(state.max_steps)
        if self.believed_stop is None and self._believes.flat_long_enough(view.flat_steps, step, warmup):
            self.believed_stop = step

    def _note(self, decisions: list[tuple[int, str]]) -> None:
        """Keep what a law has decided since it was last asked: it keeps the last ones only itself."""
        known = self.decisions[-1:]
        if decisions[-1:] == known:
            return
        new = decisions.index(known[0]) + 1 if known and known[0] in decisions else 0
        self.decisions += decisions[new:]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        emo = unwrap(optimizer)
        if emo is not None:  # it may have heard the evaluation
            self._note(emo.decisions)
        numbers = {
            k.removeprefix("eval_"): float(v) for k, v in (metrics or {}).items() if isinstance(v, (int, float))
        }
        if "loss" in numbers:
            self.evaluations.append({"step": state.global_step, **numbers})

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        kept = [value for of_one in inner.state.values() for value in of_one.values()]
        self.state_bytes = sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))


class AblationCallback(TrainerCallback):
    """Has an ablation take the place of a law's factors when training begins.

    Args:
        name: `constant:X` or `replay:FILE#RUN`.

    Raises:
        ValueError: if it cannot be read.
    """

    def __init__(self, name: str) -> None:
        ablation = read_ablation(name)
        if ablation is None:
            raise ValueError(f"an ablation is constant:X or replay:FILE#RUN, got {name!r}")
        self._name, self._ablation = name, ablation

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        emo = unwrap(optimizer)
        if emo is None:
            raise ValueError(f"{self._name} needs an optimizer with an emotion")
        law = emo._engine.law
        law.ablated(self._name, self._ablation)


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a batch, in a fixed order."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for key in sorted(batch, key=str):
            yield from tensors_in(batch[key])
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from tensors_in(item)


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """A number that stands for the content of tensors."""
    value = 0
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(data.numpy().tobytes(), value)
    return value


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # else the time is that of asking for the work
    return time.perf_counter()


def finite(value: float) -> float | None:
    """A number as JSON has it: none where it is not finite."""
    return value if math.isfinite(value) else None
