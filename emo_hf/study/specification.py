"""What a study is: tasks, arms, learning rates and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emo_hf.study.fault_spec import FaultSpec

BEST, ALL = "best", "all"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is trained.

    Attributes:
        name: what the study calls it.
        config: an `emo-hf train` file; or
        function: `module:name` or `path.py:name`, which returns a `Task`.
        steps: optimizer steps of every run; None for what the config says.
        options: for a config, options of `emo-hf train` that win over the file; for a function, its keywords.
        faults: what goes wrong in its runs; None for nothing.
    """

    name: str
    config: str | None = None
    function: str | None = None
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    faults: FaultSpec | None = None

    @property
    def tuned_as(self) -> str:
        """The task whose tuned rates this one takes: its own, or its clean twin's."""
        return self.name if self.faults is None else self.faults.clean


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """What it is trained with.

    Attributes:
        name: what the study calls it.
        optim: a name that the Trainer's `optim` takes, or `module:Class` of any torch optimizer.
        optim_args: its arguments. They take the place of a config's.
        emotion: the law of the emotion that is attached to an optimizer without one.
        emotion_args: options of that law, and `sync`.
        self_stop: what an attached emotion's stop signal does: off, log or stop.
        lr_scheduler_type: the Trainer's name for the schedule.
        learning_rates: rates of this arm's own, such as scales around 1; None for the study's.
        options: any further arguments of the Trainer.
        guard: what looks at the norm of the gradients, `zclip` or `skip`; None for nothing but the Trainer's clipping.
    """

    name: str
    optim: str
    optim_args: Mapping[str, Any] = field(default_factory=dict)
    emotion: str | None = None
    emotion_args: Mapping[str, Any] = field(default_factory=dict)
    self_stop: str = "off"
    lr_scheduler_type: str = "linear"
    learning_rates: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    guard: str | None = None

    @property
    def law(self) -> str | None:
        """The law or ablation that is asked for, None for the optimizer's own."""
        law = self.emotion if self.emotion is not None else self.optim_args.get("emo_law")
        return None if law is None else str(law)


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """How many seeds tune the learning rate, and how many fresh ones are reported.

    Attributes:
        tune, report: their numbers.
    """

    tune: int = 1
    report: int = 5

    @property
    def to_tune(self) -> list[int]:
        return list(range(1, self.tune + 1))

    @property
    def to_report(self) -> list[int]:
        return list(range(1001, 1001 + self.report))  # never one that has tuned, however many those become


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study.

    Attributes:
        name: of its file.
        tasks, arms: by name, in the order of the file.
        learning_rates: what every arm is tuned over that has none of its own.
        seeds: how many.
        reference: the arm that all others are compared with.
        pairs: (arm, arm that it is also compared with), such as a law and its ablation.
        steps: optimizer steps of tasks that say nothing; None for what a config says.
        evaluations: how often a run evaluates, beside once before its first step.
        report_rates: `best`, fresh seeds at each arm's tuned rate; `all`, at every rate, for the range with seeds.
    """

    name: str
    tasks: Mapping[str, TaskSpec]
    arms: Mapping[str, ArmSpec]
    learning_rates: tuple[float, ...]
    seeds: Seeds
    reference: str
    pairs: tuple[tuple[str, str], ...] = ()
    steps: int | None = None
    evaluations: int = 10
    report_rates: str = BEST

    def rates_of(self, arm: ArmSpec) -> tuple[float, ...]:
        """The learning rates that an arm is tuned over."""
        return arm.learning_rates or self.learning_rates

    @property
    def clean_tasks(self) -> list[str]:
        """The tasks without faults."""
        return [name for name, task in self.tasks.items() if task.faults is None]

    def source_of(self, arm: ArmSpec) -> str | None:
        """The arm whose factors this one takes, with `replay:ARM` or `constant:ARM`; None for all others."""
        kind, colon, name = (arm.law or "").partition(":")
        return name if colon and kind in ("replay", "constant") and name in self.arms else None
