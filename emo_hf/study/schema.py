"""What a study is, and how its YAML file is read: what cannot be used is refused by its key, with what is accepted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emo_hf.cli_errors import UserError, read_yaml, saying
from emo_hf.reading import Reader, boolean_or, one_of, whole_number

AVERAGED = "+average"
"""Behind the name of an arm: the same runs, judged by the average of their weights."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is trained.

    Attributes:
        name: what the study calls it.
        config: an `emo-hf train` file; or
        function: `module:name` or `path.py:name`, which returns a `Task`.
        steps: optimizer steps of every run; None for what the config says.
        options: for a config, options of `emo-hf train` that win over the file; for a function, its keywords.
        seeds: how many fresh seeds are judged; None for the study's number.
        training: arguments of the Trainer for every arm, such as `warmup_steps`; an arm's own win.
        learning_rates: lowest and highest rate for arms without rates of their own; None for the study's.
        rates_of: another task whose tuned rates are taken, such as the same one without faults.
    """

    name: str
    config: str | None = None
    function: str | None = None
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, float] | None = None
    rates_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """What it is trained with.

    Attributes:
        name: what the study calls it.
        optim: a name that the Trainer's `optim` takes, or `module:Class` of any torch optimizer.
        optim_args: its arguments. They take the place of a config's.
        emotion: the law that is attached to an optimizer without one.
        emotion_args: options of that law, and `sync`.
        self_stop: what the attached law's stop signal does: off, log or stop.
        lr_scheduler_type: the Trainer's name for the schedule.
        learning_rates: lowest and highest rate of this arm's own, such as scales around 1; None for the study's.
        average: `true`: an average of the weights is kept, and judged as a second arm, `NAME+average`; `only`: it
            is what the arm is judged by.
        callback: `module:name` or `path.py:name` that makes a `TrainerCallback`, added to each run.
        options: any further arguments of the Trainer.
    """

    name: str
    optim: str
    optim_args: Mapping[str, Any] = field(default_factory=dict)
    emotion: str | None = None
    emotion_args: Mapping[str, Any] = field(default_factory=dict)
    self_stop: str = "off"
    lr_scheduler_type: str = "linear"
    learning_rates: tuple[float, float] | None = None
    average: bool | str = False
    callback: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """An arm as the report knows it: the runs of `arm`, and whether the weights or their average are judged."""

    name: str
    arm: ArmSpec
    averaged: bool


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study.

    Attributes:
        name: of its file.
        tasks, arms: by name, in the order of the file.
        learning_rates: the lowest and the highest rate that every arm is tuned over at first.
        tune, report: how many seeds tune, and how many fresh ones are judged.
        reference: the judged arm that all others are compared with.
        pairs: (judged arm, judged arm that it is also compared with).
        steps: optimizer steps of tasks that say nothing; None for what a config says.
        evaluations: how often a run evaluates, beside once before its first step.
    """

    name: str
    tasks: Mapping[str, TaskSpec]
    arms: Mapping[str, ArmSpec]
    learning_rates: tuple[float, float]
    reference: str
    tune: int = 1
    report: int = 5
    pairs: tuple[tuple[str, str], ...] = ()
    steps: int | None = None
    evaluations: int = 8

    @property
    def judged(self) -> dict[str, Judged]:
        """The arms of the report, by name."""
        found = {}
        for arm in self.arms.values():
            if arm.average != "only":
                found[arm.name] = Judged(arm.name, arm, averaged=False)
            if arm.average:
                name = arm.name if arm.average == "only" else arm.name + AVERAGED
                found[name] = Judged(name, arm, averaged=True)
        return found

    def fresh_seeds(self, task: TaskSpec) -> list[int]:
        """The seeds that are judged on a task: never one that has tuned."""
        return list(range(1001, 1001 + (task.seeds or self.report)))


def read_study(path: Path) -> Study:
    """Read and check a study.

    Raises:
        UserError: naming the key, what was given and what is accepted.
    """
    with saying(f"{path}: ", UserError):
        return parse_study(read_yaml(path), path.stem)


def parse_study(content: Mapping[str, Any], name: str) -> Study:
    """The study that a YAML document holds; raises as `read_study` does."""
    given = dict(content)
    if missing := [key for key in ("tasks", "arms", "learning_rates", "reference") if given.get(key) is None]:
        raise UserError(f"{missing[0]} is missing")
    found = _taken(given, "", STUDY)
    seeds = dict(found.pop("seeds", {}))
    found |= _taken(seeds, "seeds.", SEEDS)
    for rest, where, known in ((given, "", STUDY), (seeds, "seeds.", SEEDS)):
        for key in rest:
            close = difflib.get_close_matches(key, known, n=1)
            raise UserError(f"unknown key {where}{key}" + (f" (did you mean {where}{close[0]}?)" if close else ""))
    found["tasks"] = {key: _task(key, value) for key, value in found["tasks"].items()}
    found["arms"] = {key: _arm(key, value) for key, value in found["arms"].items()}
    study = Study(name=name, **found)
    _check_names(study)
    return study


def _check_names(study: Study) -> None:
    """What refers to an arm or a task by its name must find it."""
    judged = study.judged
    if len(judged) != sum(1 + (arm.average is True) for arm in study.arms.values()):
        raise UserError(f"arms: a name may not end as that of another arm with {AVERAGED!r}: {', '.join(judged)}")
    for name, where in [(study.reference, "reference"), *((arm, "pairs") for pair in study.pairs for arm in pair)]:
        if name not in judged:
            raise UserError(f"{where}: must name one of the arms {', '.join(judged)}, got {name!r}")
    tuned = [task.name for task in study.tasks.values() if task.rates_of is None]
    for task in study.tasks.values():
        if task.function is not None and task.steps is None and study.steps is None:
            raise UserError(f"tasks.{task.name}.steps is missing: give steps there, or for the whole study")
        if task.rates_of not in (None, *tuned):
            raise UserError(f"tasks.{task.name}.rates_of must be one of {', '.join(tuned)}, got {task.rates_of!r}")


def _task(name: str, value: Any) -> TaskSpec:
    where = f"tasks.{name}."
    given = dict(_taken({name: value}, "tasks.", {name: mapping})[name])
    kind = "config" if "config" in given else "function"
    if ("config" in given) == ("function" in given):
        kinds = "config (an emo-hf train file) or function (module:name)"
        raise UserError(f"tasks.{name} must have either {kinds}, got {'both' if kind in given else 'neither'}")
    if kind == "config" and "max_steps" in given:  # as an emo-hf train file calls it
        given.setdefault("steps", given.pop("max_steps"))
    found = _taken(given, where, TASK)
    for key in ("optim", "optim_args", "emo_law", "learning_rate", "lr_scheduler_type", "seed", "data_seed"):
        if key in found.get("training", ()) or (kind == "config" and key in given):
            belongs = "each run has one of its own" if key.endswith(("seed", "_rate")) else "it belongs to an arm"
            raise UserError(f"{where}{key} cannot be given here: {belongs}")
    return TaskSpec(name=name, options=given, **found)


def _arm(name: str, value: Any) -> ArmSpec:
    where = f"arms.{name}."
    given = dict(_taken({name: value}, "arms.", {name: mapping})[name])
    for key, instead in (("learning_rate", "learning_rates, the lowest and the highest"), ("seed", "seeds")):
        if key in given:
            raise UserError(f"{where}{key} cannot be given here: give {instead}")
    if "optim" not in given:
        raise UserError(f"{where}optim is missing: give a name such as adamw_torch, or module:Class")
    if given.get("emotion") is None and not given.keys().isdisjoint(("emotion_args", "self_stop")):
        raise UserError(f"arms.{name}: emotion_args and self_stop are for an emotion that is attached: give emotion")
    found = _taken(given, where, ARM)
    if "emo_law" in given:
        found["optim_args"] = {**found.get("optim_args", {}), "emo_law": given.pop("emo_law")}
    return ArmSpec(name=name, options=given, **found)


def _taken(given: dict[str, Any], where: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """What is given under some keys, read and taken out; what is null counts as not given.

    Raises:
        UserError: naming the key, what was given and what is accepted.
    """
    found = {}
    for key, read in readers.items():
        value = given.pop(key, None)
        if value is not None:
            try:
                found[key] = read(value)
            except ValueError as error:
                raise UserError(f"{where}{key} must be {error}, got {value!r}") from None
    return found


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def place(value: Any) -> str:
    if not isinstance(value, str) or not all(value.rpartition(":")[::2]):
        raise ValueError("module:name or path.py:name")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("a mapping, one `key: value` a line")
    return value


def several(value: Any) -> Mapping[str, Any]:
    if not mapping(value):
        raise ValueError("a mapping from names, with one at least")
    return mapping(value)


def optim_args(value: Any) -> Mapping[str, Any]:
    """A mapping, or `key=value,…` as `--optim_args` takes it."""
    if not isinstance(value, str):
        return mapping(value)
    parts = [part.partition("=") for part in value.split(",")]
    if not all(key.strip() and equals for key, equals, _ in parts):
        raise ValueError("a mapping or `key=value,…`")
    return {key.strip(): text.strip() for key, _, text in parts}


def self_stop(value: Any) -> str:
    return one_of("off", "log", "stop")("off" if value is False else value)  # YAML 1.1 reads off as false


def pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError("a list of [arm, another arm]")
    return tuple((str(arm), str(other)) for arm, other in value)


def rates(value: Any) -> tuple[float, float]:
    """The lowest and the highest rate; YAML reads 1e-5 as a text."""
    try:
        low, high = (math.nan if isinstance(item, bool) else float(item) for item in value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0.0 < low < high < math.inf:
        raise ValueError("the lowest and the highest rate, such as [1e-4, 3e-2]")
    return low, high


count = whole_number(1)
STUDY: dict[str, Reader] = {
    "tasks": several, "arms": several, "learning_rates": rates, "seeds": mapping, "reference": text, "pairs": pairs,
    "steps": count, "evaluations": count,
}  # fmt: skip
SEEDS: dict[str, Reader] = {"tune": count, "report": count}
TASK: dict[str, Reader] = {
    "config": text, "function": place, "steps": count, "seeds": count, "training": mapping, "learning_rates": rates,
    "rates_of": text,
}  # fmt: skip
ARM: dict[str, Reader] = {
    "optim": text, "optim_args": optim_args, "emotion": text, "emotion_args": mapping, "self_stop": self_stop,
    "lr_scheduler_type": text, "learning_rates": rates, "average": boolean_or("only"), "callback": place,
}  # fmt: skip
"""Key → what reads it. All other keys of a task or an arm are its options."""
