"""Faults that a study brings into the runs of a task: which, how strong, and at which steps."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from emo_hf.study.errors import StudyError
from emo_hf.study.values import above_zero, count, mapping, one_of, only

if TYPE_CHECKING:
    from emo_hf.study.specification import TaskSpec

POISONED, NAN, INF, RATE = "poisoned", "nan", "inf", "rate"
FACTORS: Mapping[str, float] = {POISONED: 50.0, RATE: 10.0}
"""What a kind multiplies, if nothing is said; the others multiply nothing."""
LENGTH = 20
"""Steps of a rate that is too high."""

QUIET_START = 0.1
"""The share of a run that has no faults."""
AFTERMATH = 5
"""So many steps after a fault of one step, a step is not held to be clean."""


@dataclass(frozen=True, kw_only=True)
class FaultSpec:
    """What goes wrong in the runs of a task.

    Attributes:
        kind: `poisoned`, the loss is multiplied and the gradients are noisy; `nan` or `inf`, one such element in the
            gradient of one parameter; `rate`, the learning rate is multiplied.
        clean: the task that is the same without faults, whose tuned rates are taken.
        count: how many faults a run has.
        factor: on the loss or on the rate.
        length: how many steps a fault takes.
    """

    kind: str
    clean: str
    count: int = 20
    factor: float = 1.0
    length: int = 1

    @property
    def reach(self) -> int:
        """The last step after the beginning of a fault that is not clean."""
        return self.length if self.kind == RATE else AFTERMATH

    def begin_at(self, total: int, seed: int) -> list[int]:
        """The steps, counted from 1, at which the faults of a run begin.

        They are the same for all arms of a seed: after the first 10 %, the run is cut into `count` parts of equal
        length, and a step is drawn in each.

        Args:
            total: optimizer steps of the run.
            seed: the run's.

        Raises:
            StudyError: if they do not fit.
        """
        first = math.floor(QUIET_START * total)
        if (total - first) // self.count < self.length:
            most = (total - first) // self.length
            raise StudyError(
                f"faults.count: {self.count} faults of {self.length} step{'s' * (self.length > 1)} do not fit into "
                f"the last {total - first} of {total} steps: give at most {most}, or more steps"
            )
        drawn = random.Random(f"faults of seed {seed}")
        edges = [first + (total - first) * i // self.count for i in range(self.count + 1)]
        return [drawn.randrange(low, high - self.length + 1) + 1 for low, high in pairwise(edges)]


def read_faults(where: str, value: Any) -> FaultSpec:
    """A task's key `faults`.

    Raises:
        StudyError: naming the key, what was given and what is accepted.
    """
    given = mapping(where, value)
    if "kind" not in given:
        raise StudyError(f"{where}.kind is missing: give one of {POISONED}, {NAN}, {INF}, {RATE}")
    kind = one_of(f"{where}.kind", given["kind"], (POISONED, NAN, INF, RATE))
    own = {POISONED: ("factor",), RATE: ("factor", "length")}.get(kind, ())
    only(("kind", "clean", "count", *own), given, f"{where}.")
    if not isinstance(given.get("clean"), str):
        raise StudyError(
            f"{where}.clean must name the task that is the same without faults, whose tuned rates are taken, "
            f"got {given.get('clean')!r}"
        )
    return FaultSpec(
        kind=kind,
        clean=given["clean"],
        count=count(f"{where}.count", given.get("count", FaultSpec.count), 1),
        factor=above_zero(f"{where}.factor", given.get("factor", FACTORS.get(kind, 1.0))),
        length=count(f"{where}.length", given.get("length", LENGTH if kind == RATE else 1), 1),
    )


def check_faults(tasks: Mapping[str, TaskSpec], steps: int | None) -> None:
    """Refuse a task with faults whose clean twin is another task, and faults that do not fit.

    Args:
        tasks: all tasks of the study.
        steps: of tasks that say nothing.

    Raises:
        StudyError: naming the task.
    """
    for task in tasks.values():
        if task.faults is None:
            continue
        where, twin = f"tasks.{task.name}", tasks.get(task.faults.clean)
        if twin is None or twin.faults is not None:
            known = ", ".join(name for name, other in tasks.items() if other.faults is None) or "there is none"
            raise StudyError(
                f"{where}.faults.clean must be a task without faults ({known}), got {task.faults.clean!r}"
            )
        for key in ("config", "function", "steps", "options"):
            ours, theirs = getattr(task, key), getattr(twin, key)
            if ours != theirs:
                raise StudyError(
                    f"{where} must be the same as its clean twin {twin.name} but for faults, got {key} {ours!r} and "
                    f"{theirs!r}"
                )
        total = task.steps if task.steps is not None else steps
        if total is not None:
            try:
                task.faults.begin_at(total, 0)
            except StudyError as error:
                raise StudyError(f"{where}.{error}") from None


def unclean(begins: Iterable[int], reach: int) -> set[int]:
    """The steps at which a brake has a cause: those of faults, and up to `reach` steps after their beginning."""
    return {step for begin in begins for step in range(begin, begin + reach + 1)}
