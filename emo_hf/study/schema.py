"""What a study is, and how its YAML file is read: what cannot be used is refused by its key, with what is accepted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from emo_hf.cli_errors import UserError

AVERAGED = "+average"
"""Behind the name of an arm: the same runs, judged by the average of their weights."""
LONGEST_NAME = 60


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
    tune: int
    report: int
    reference: str
    pairs: tuple[tuple[str, str], ...]
    steps: int | None
    evaluations: int

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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    try:
        return parse_study(content, path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_study(content: Any, name: str) -> Study:
    """The study that a YAML document holds; raises as `read_study` does."""
    given = mapping("the study", content)
    only(("tasks", "arms", "learning_rates", "seeds", "reference", "pairs", "steps", "evaluations"), given, "")
    for key in ("tasks", "arms", "learning_rates", "reference"):
        if key not in given:
            raise UserError(f"{key} is missing")
    seeds = mapping("seeds", given.get("seeds", {}))
    only(("tune", "report"), seeds, "seeds.")
    study = Study(
        name=name,
        tasks={key: _task(key, value) for key, value in named("tasks", given["tasks"]).items()},
        arms={key: _arm(key, value) for key, value in named("arms", given["arms"]).items()},
        learning_rates=_rates("learning_rates", given["learning_rates"]),
        tune=count("seeds.tune", seeds.get("tune", 1), 1),
        report=count("seeds.report", seeds.get("report", 5), 1),
        reference=given["reference"],
        pairs=tuple(_pair(pair) for pair in _list("pairs", given.get("pairs", []))),
        steps=count("steps", given["steps"], 1) if given.get("steps") is not None else None,
        evaluations=count("evaluations", given.get("evaluations", 8), 1),
    )
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
    for task in study.tasks.values():
        if task.function is not None and task.steps is None and study.steps is None:
            raise UserError(f"tasks.{task.name}.steps is missing: give steps there, or for the whole study")
        twin = study.tasks.get(task.rates_of or task.name)
        if twin is None or twin.rates_of is not None:
            known = ", ".join(other.name for other in study.tasks.values() if other.rates_of is None)
            raise UserError(f"tasks.{task.name}.rates_of must be one of {known}, got {task.rates_of!r}")


def _task(name: str, value: Any) -> TaskSpec:
    where = f"tasks.{name}"
    given = dict(mapping(where, value))
    sources = [key for key in ("config", "function") if key in given]
    if len(sources) != 1:
        both = "both" if sources else "neither"
        raise UserError(
            f"{where} must have either config (an emo-hf train file) or function (module:name), got {both}"
        )
    source = sources[0]
    text = given.pop(source)
    if source == "function":
        place(f"{where}.function", text)
    if not isinstance(text, str) or not text:
        raise UserError(f"{where}.{source} must be a text, got {text!r}")
    if source == "config" and "max_steps" in given:
        if "steps" in given:
            raise UserError(f"{where}: steps and max_steps are the same, give one of them")
        given["steps"] = given.pop("max_steps")
    steps, seeds = given.pop("steps", None), given.pop("seeds", None)
    training = mapping(f"{where}.training", given.pop("training", {}))
    for key in ("optim", "optim_args", "emo_law", "learning_rate", "lr_scheduler_type", "seed", "data_seed"):
        if key in training or (source == "config" and key in given):
            belongs = "each run has one of its own" if key.endswith(("seed", "_rate")) else "it belongs to an arm"
            raise UserError(f"{where}.{key} cannot be given here: {belongs}")
    rates_of, rates = given.pop("rates_of", None), given.pop("learning_rates", None)
    return TaskSpec(
        name=name,
        options=given,
        training=training,
        learning_rates=None if rates is None else _rates(f"{where}.learning_rates", rates),
        rates_of=rates_of,
        steps=None if steps is None else count(f"{where}.steps", steps, 1),
        seeds=None if seeds is None else count(f"{where}.seeds", seeds, 1),
        config=text if source == "config" else None,
        function=text if source == "function" else None,
    )


def _arm(name: str, value: Any) -> ArmSpec:
    where = f"arms.{name}"
    given = dict(mapping(where, value))
    optim = given.pop("optim", None)
    if not isinstance(optim, str) or not optim:
        raise UserError(f"{where}.optim must be a name such as adamw_torch or module:Class, got {optim!r}")
    for key, instead in (("learning_rate", "learning_rates, the lowest and the highest"), ("seed", "seeds")):
        if key in given:
            raise UserError(f"{where}.{key} cannot be given here: give {instead}")
    optim_args = _optim_args(f"{where}.optim_args", given.pop("optim_args", {}))
    if "emo_law" in given:
        optim_args["emo_law"] = given.pop("emo_law")
    emotion = given.pop("emotion", None)
    if emotion is not None and not isinstance(emotion, str):
        raise UserError(f"{where}.emotion must be the name of a law, got {emotion!r}")
    emotion_args = mapping(f"{where}.emotion_args", given.pop("emotion_args", {}))
    if emotion is None and (emotion_args or "self_stop" in given):
        raise UserError(f"{where}: emotion_args and self_stop are for an emotion that is attached: give emotion")
    self_stop = given.pop("self_stop", "off")  # YAML 1.1 reads off as false
    rates, callback = given.pop("learning_rates", None), given.pop("callback", None)
    return ArmSpec(
        name=name,
        optim=optim,
        optim_args=optim_args,
        emotion=emotion,
        emotion_args=emotion_args,
        self_stop=one_of(f"{where}.self_stop", "off" if self_stop is False else self_stop, ("off", "log", "stop")),
        lr_scheduler_type=str(given.pop("lr_scheduler_type", "linear")),
        learning_rates=None if rates is None else _rates(f"{where}.learning_rates", rates),
        average=one_of(f"{where}.average", given.pop("average", False), (False, True, "only")),
        callback=None if callback is None else place(f"{where}.callback", callback),
        options=given,
    )


def _optim_args(where: str, value: Any) -> dict[str, Any]:
    """A mapping, or `key=value,…` as `--optim_args` takes it."""
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",")]
        if not all(key.strip() and equals for key, equals, _ in parts):
            raise UserError(f"{where} must be a mapping or `key=value,…`, got {value!r}")
        return {key.strip(): text.strip() for key, _, text in parts}
    return dict(mapping(where, value))


def _pair(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
        raise UserError(f"pairs must be a list of [arm, another arm], got {pair!r}")
    return str(pair[0]), str(pair[1])


def _rates(where: str, value: Any) -> tuple[float, float]:
    """The lowest and the highest rate; YAML reads 1e-5 as a text."""
    try:
        low, high = (math.nan if isinstance(item, bool) else float(item) for item in value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0.0 < low < high < math.inf:
        raise UserError(f"{where} must be the lowest and the highest rate, such as [1e-4, 3e-2], got {value!r}")
    return low, high


def place(where: str, value: Any) -> str:
    """`module:name` or `path.py:name`."""
    if not isinstance(value, str) or not all(value.rpartition(":")[::2]):
        raise UserError(f"{where} must be module:name or path.py:name, got {value!r}")
    return value


def count(where: str, value: Any, low: int) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{where} must be a whole number of at least {low}, got {value!r}")
    return value


def one_of(where: str, value: Any, known: Sequence[Any]) -> Any:
    """One of a few values."""
    if not any(value is item or (value == item and isinstance(item, str)) for item in known):
        raise UserError(f"{where} must be one of {', '.join(map(str, known))}, got {value!r}")
    return value


def mapping(where: str, value: Any) -> Mapping[str, Any]:
    """A mapping with texts as keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where} must be a mapping, one `key: value` a line, got {value!r}")
    return value


def named(where: str, value: Any) -> Mapping[str, Any]:
    """A mapping from names, with one at least."""
    given = mapping(where, value)
    if not given:
        raise UserError(f"{where} must hold at least one, got {{}}")
    for name in given:
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME or name != name.strip():
            raise UserError(f"{where}: a name must be of 1 to {LONGEST_NAME} characters in one line, got {name!r}")
    return given


def only(known: Sequence[str], given: Mapping[str, Any], where: str) -> None:
    """Refuse keys that are not known."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {where}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"unknown key {where}{key} ({hint})")


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list, got {value!r}")
    return value
