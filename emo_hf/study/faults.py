"""Brings faults into a run: poisoned batches, gradients that are NaN or infinite, a rate that is too high."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.study.fault_spec import INF, NAN, POISONED, RATE, FaultSpec, unclean

NOISE = 10.0
"""Noise on the gradients of a poisoned batch, in standard deviations of each gradient's own elements."""


class Faults(TrainerCallback):
    """Does to a run what its task's `faults` say, in the same steps and places for all arms of a seed.

    A poisoned loss is multiplied before it goes backward, so that whoever listens there hears it. Gradients are
    spoilt after the last backward pass of a step, before they are clipped. A rate is raised for the optimizer's
    step alone: no schedule sees it.

    Args:
        spec: what goes wrong.
        seed: the run's.
        trainer: the Trainer, before it trains.
    """

    def __init__(self, spec: FaultSpec, seed: int, trainer: Trainer) -> None:
        self.spec = spec
        self.begins: list[int] = []
        self._seed = seed
        self._faulty: set[int] = set()
        self._step: int | None = None  # that is being taken, if it has a fault
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._lie_under(trainer)

    def _lie_under(self, trainer: Trainer) -> None:
        training_step, compute_loss = trainer.training_step, trainer.compute_loss

        def faulty_loss(*args: Any, **kwargs: Any) -> Any:
            loss = compute_loss(*args, **kwargs)
            return self.spec.factor * loss if self._step is not None and self.spec.kind == POISONED else loss

        def faulty_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = training_step(*args, **kwargs)
            if self._step is not None and trainer.accelerator.sync_gradients:  # the last micro-batch
                spoil(self.spec.kind, trainer.model, random.Random(f"fault of seed {self._seed} at {self._step}"))
            return loss

        trainer.compute_loss, trainer.training_step = faulty_loss, faulty_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begins = self.spec.begin_at(state.max_steps, self._seed)
        self._faulty = {step for begin in self.begins for step in range(begin, begin + self.spec.length)}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step + 1
        self._step = step if step in self._faulty else None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        if self._step is None or self.spec.kind != RATE:
            return
        self._rates = [(group, group["lr"]) for group in optimizer.param_groups]
        for group, rate in self._rates:
            group["lr"] = rate * self.spec.factor

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._step = None  # evaluations see no fault

    def outcome(self, steps: int) -> dict[str, Any]:
        """What is written down of the faults of a run that came to so many steps."""
        begins = [begin for begin in self.begins if begin <= steps]
        return {"kind": self.spec.kind, "steps": begins, "length": self.spec.length, "reach": self.spec.reach}


def spoil(kind: str, model: nn.Module, draw: random.Random) -> None:
    """Do to the gradients of a model what a fault does to them.

    poisoned    g ← g + 10·sd(g)·n, n ~ N(0, 1) for each element, sd over the elements of that gradient
    nan, inf    one element of one gradient becomes NaN, or infinite
    """
    gradients = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    if kind == POISONED:
        # A generator of its own: dropout goes on as in the clean run.
        generator = torch.Generator().manual_seed(draw.getrandbits(62))
        for gradient in gradients:
            noise = torch.randn(gradient.shape, generator=generator).to(gradient)
            gradient.add_(noise * (NOISE * gradient.std(correction=0)))
    elif kind in (NAN, INF) and gradients:
        gradient = draw.choice(gradients)
        gradient[tuple(draw.randrange(size) for size in gradient.shape)] = math.nan if kind == NAN else math.inf


def braking(faults: Mapping[str, Any] | None, skipped: Sequence[int], losses: Sequence[float]) -> dict[str, Any]:
    """How many steps were skipped with and without a cause.

    Args:
        faults: what `Faults.outcome` says; None for a run without faults.
        skipped: the steps that were skipped, from 1.
        losses: of every step. One that is not finite is a cause; after one, a fault that is skipped does not count,
            as the weights are lost.
    """
    begins, length, reach = (faults["steps"], faults["length"], faults["reach"]) if faults else ((), 0, 0)
    excused = unclean(begins, reach)
    alive = {step for step in skipped if step == 1 or math.isfinite(losses[step - 2])}
    return {
        "faults": faults,
        "braked": sum(step not in excused and math.isfinite(losses[step - 1]) for step in skipped),
        "skipped_faults": sum(any(b + i in alive for i in range(length)) for b in begins) if faults else None,
    }
