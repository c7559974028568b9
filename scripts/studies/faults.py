"""Tasks that go wrong on purpose, and guards that an arm can have against it in place of gradient clipping."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from emo_hf.integrations.accelerate import unwrap
from emo_hf.study.task import Task, named_in

POISONED, NAN, INF, RATE = "poisoned", "nan", "inf", "rate"
FACTORS: Mapping[str, float] = {POISONED: 50.0, RATE: 10.0}
LENGTH = 20  # steps of a rate that is too high
QUIET_START = 0.1  # the share of a run that has no faults
AFTERMATH = 5  # so many steps after a fault of one step, a step is not held to be clean
NOISE = 10.0  # on the gradients of a poisoned batch, in standard deviations of each gradient's own elements
WARM_UP = 25  # norms that a guard takes as they are, to know what is usual


def with_faults(seed: int, task: str, kind: str, count: int = 20, **options: Any) -> Task:
    """Another task, and faults in its runs: in the same steps and places for all arms of a seed.

    Args:
        seed: of the task, and of the faults.
        task: the task without faults, `path.py:name`.
        kind: `poisoned`, the loss × 50 and noisy gradients; `nan` or `inf`, one such element in the gradient of one
            parameter; `rate`, the learning rate × 10 for 20 steps.
        count: how many faults a run has.
        options: of the task.
    """
    made: Task = named_in("task", task)(seed, **options)
    faults = Faults(kind, count, seed)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        value = made.loss(model, batch)
        return FACTORS[POISONED] * value if faults.step is not None and kind == POISONED else value

    return dataclasses.replace(made, loss=loss, prepare=faults.prepare, outcome=faults.outcome)


class Faults(TrainerCallback):
    """Spoils gradients after the last backward pass of a step, before they are clipped; raises a rate unseen by its
    schedule; counts the steps that are left out, with and without a cause.

    Args:
        kind, count, seed: as for `with_faults`.
    """

    def __init__(self, kind: str, count: int, seed: int) -> None:
        if kind not in (POISONED, NAN, INF, RATE):
            raise ValueError(f"kind must be one of {POISONED}, {NAN}, {INF}, {RATE}, got {kind!r}")
        self.kind, self.count, self.seed = kind, count, seed
        self.step: int | None = None  # that is being taken, if it has a fault
        self._length = LENGTH if kind == RATE else 1
        self._faulty: set[int] = set()
        self._excused: set[int] = set()
        self._counts = {"faults": 0, "faults_left_out": 0, "clean_steps": 0, "clean_steps_left_out": 0}
        self._rates: list[tuple[dict[str, Any], Any]] = []

    def prepare(self, trainer: Any) -> None:
        trainer.add_callback(self)
        training_step = trainer.training_step

        def faulty_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = training_step(*args, **kwargs)
            if self.step is not None and trainer.accelerator.sync_gradients:
                spoil(self.kind, trainer.model, random.Random(f"fault of seed {self.seed} at {self.step}"))
            return loss

        trainer.training_step = faulty_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for begin in begin_at(state.max_steps, self.count, self._length, self.seed):
            self._faulty |= set(range(begin, begin + self._length))
            self._excused |= set(range(begin, begin + (self._length if self.kind == RATE else AFTERMATH) + 1))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = state.global_step + 1 if state.global_step + 1 in self._faulty else None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if self.step is not None and self.kind == RATE:
            self._rates = [(group, group["lr"]) for group in optimizer.param_groups]
            for group, rate in self._rates:
                group["lr"] = rate * FACTORS[RATE]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates = []

    def on_step_end(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, model: Any = None, **_: Any
    ) -> None:
        emo = unwrap(optimizer)
        left_out = (emo is not None and emo.decision.skip) or bool(getattr(model, "left_out_by_guard", False))
        kind = "faults" if self.step is not None else None if state.global_step in self._excused else "clean_steps"
        if kind is not None:
            self._counts[kind] += 1
            self._counts[f"{kind}_left_out"] += left_out
        self.step = None  # evaluations see no fault

    def outcome(self) -> dict[str, int]:
        return self._counts


def begin_at(total: int, count: int, length: int, seed: int) -> list[int]:
    """The steps, from 1, at which faults begin: one in each of `count` parts of all but the first 10 %."""
    first = math.floor(QUIET_START * total)
    if (total - first) // count < length:
        raise ValueError(f"{count} faults of {length} steps do not fit into the last {total - first} of {total} steps")
    drawn = random.Random(f"faults of seed {seed}")
    edges = [first + (total - first) * i // count for i in range(count + 1)]
    return [drawn.randrange(low, high - length + 1) + 1 for low, high in pairwise(edges)]


def spoil(kind: str, model: nn.Module, draw: random.Random) -> None:
    """Do to the gradients of a model what a fault does to them.

    poisoned    g ← g + 10·sd(g)·n, n ~ N(0, 1) for each element, sd over the elements of that gradient
    nan, inf    one element of one gradient becomes NaN, or infinite
    """
    gradients = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    if kind == POISONED:
        generator = torch.Generator().manual_seed(draw.getrandbits(62))  # its own: dropout goes on as without faults
        for gradient in gradients:
            noise = torch.randn(gradient.shape, generator=generator).to(gradient)
            gradient.add_(noise * (NOISE * gradient.std(correction=0)))
    elif kind in (NAN, INF) and gradients:
        gradient = draw.choice(gradients)
        gradient[tuple(draw.randrange(size) for size in gradient.shape)] = math.nan if kind == NAN else math.inf


class Guard(TrainerCallback):
    """Looks at the global norm g of the gradients right before each step; one that is not finite is left out."""

    def factor(self, norm: float) -> float | None:
        """What the gradients are multiplied by for a finite norm; None to leave the step out."""
        raise NotImplementedError

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = global_norm([parameter.grad for parameter in parameters])
        factor = self.factor(norm) if math.isfinite(norm) else None
        model.left_out_by_guard = factor is None
        for parameter in parameters:
            if factor is None:
                parameter.grad = None
            elif factor != 1.0:
                parameter.grad.mul_(factor)


class ZClip(Guard):
    """ZClip (arXiv 2504.02507), z = 2.5 and α = 0.97.

        z_t = (g − μ) / σ
        z_t > z:    g* = μ + (z²/z_t)·σ, the gradients times g*/g;    else g* = g
        μ ← α·μ + (1 − α)·g*        σ² ← α·σ² + (1 − α)·(g* − μ)²

    μ and σ begin as mean and standard deviation of the first 25 norms.
    """

    Z = 2.5
    ALPHA = 0.97

    def __init__(self) -> None:
        self.mean = self.variance = 0.0
        self._first: list[float] = []

    def factor(self, norm: float) -> float:
        if len(self._first) < WARM_UP:
            self._first.append(norm)
            self.mean = sum(self._first) / len(self._first)
            self.variance = sum((first - self.mean) ** 2 for first in self._first) / len(self._first)
            return 1.0
        clipped, above = norm, norm - self.mean
        if above > self.Z * math.sqrt(self.variance):
            clipped = self.mean + self.Z**2 * self.variance / above  # (z²/z_t)·σ, without dividing by a σ of 0
        self.mean = self.ALPHA * self.mean + (1.0 - self.ALPHA) * clipped
        self.variance = self.ALPHA * self.variance + (1.0 - self.ALPHA) * (clipped - self.mean) ** 2
        return clipped / norm if clipped != norm else 1.0


class SkipHigh(Guard):
    """The plainest rule: a step is left out when g is above 3 times the mean of the last 100 that were not.

    Where norms have risen to three times what they were for good, it never steps again.
    """

    TIMES = 3.0

    def __init__(self) -> None:
        self._taken: deque[float] = deque(maxlen=100)

    def factor(self, norm: float) -> float | None:
        if len(self._taken) >= WARM_UP and norm > self.TIMES * sum(self._taken) / len(self._taken):
            return None
        self._taken.append(norm)
        return 1.0


def global_norm(gradients: Sequence[torch.Tensor]) -> float:
    """The Euclidean norm of all gradients together."""
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))
