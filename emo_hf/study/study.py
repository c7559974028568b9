"""A study's YAML file, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from emo_hf.study import values
from emo_hf.study.errors import StudyError
from emo_hf.study.fault_spec import check_faults, read_faults
from emo_hf.study.specification import ALL, BEST, ArmSpec, Seeds, Study, TaskSpec

CONFIG, FUNCTION = "config", "function"
GUARDS = ("zclip", "skip")
"""What looks at the norm of the gradients before a step; guards.py has them."""

EMOTION_KEYS = ("emotion", "emo_law")
OF_ARM = "an optimizer and its law belong to an arm"


def read_study(path: Path) -> Study:
    """Read and check a study.

    Raises:
        StudyError: naming the key, what was given and what is accepted.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    try:
        return parse_study(content, path.stem)
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None


def parse_study(content: Any, name: str) -> Study:
    """The study that a YAML document holds; raises as `read_study` does."""
    given = values.mapping("the study", content)
    known = ("tasks", "arms", "learning_rates", "seeds", "reference", "pairs", "steps", "evaluations", "report_rates")
    values.only(known, given, "")
    for key in ("tasks", "arms", "learning_rates", "reference"):
        if key not in given:
            raise StudyError(f"{key} is missing")
    steps = values.count("steps", given["steps"], 1) if given.get("steps") is not None else None
    tasks = {key: _task(key, value) for key, value in values.named("tasks", given["tasks"]).items()}
    arms = {key: _arm(key, value) for key, value in values.named("arms", given["arms"]).items()}
    if given["reference"] not in arms:
        raise StudyError(f"reference must be one of the arms {', '.join(arms)}, got {given['reference']!r}")
    for task in tasks.values():
        if task.function is not None and task.steps is None and steps is None:
            raise StudyError(f"tasks.{task.name}.steps is missing: give steps there, or for the whole study")
    report_rates = given.get("report_rates", BEST)
    if report_rates not in (BEST, ALL):
        raise StudyError(f"report_rates must be {BEST} or {ALL}, got {report_rates!r}")
    study = Study(
        name=name,
        tasks=tasks,
        arms=arms,
        learning_rates=values.rates("learning_rates", given["learning_rates"]),
        seeds=_seeds(given.get("seeds", {})),
        reference=given["reference"],
        pairs=_pairs(given.get("pairs", []), arms),
        steps=steps,
        evaluations=values.count("evaluations", given.get("evaluations", 10), 1),
        report_rates=report_rates,
    )
    _check_sources(study)
    check_faults(study.tasks, study.steps)
    return study


def _pairs(value: Any, arms: Mapping[str, ArmSpec]) -> tuple[tuple[str, str], ...]:
    for pair in value if isinstance(value, list) else [value]:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1] or not all(arm in arms for arm in pair):
            raise StudyError(f"pairs must be a list of [arm, another arm] of {', '.join(arms)}, got {pair!r}")
    return tuple((str(arm), str(against)) for arm, against in value)


def _task(name: str, value: Any) -> TaskSpec:
    where = f"tasks.{name}"
    given = dict(values.mapping(where, value))
    sources = [key for key in (CONFIG, FUNCTION) if key in given]
    if len(sources) != 1:
        both = "both" if sources else "neither"
        raise StudyError(
            f"{where} must have either {CONFIG} (an emo-hf train file) or {FUNCTION} (module:name), got {both}"
        )
    source = sources[0]
    text = given.pop(source)
    if not isinstance(text, str) or not text:
        raise StudyError(f"{where}.{source} must be a text, got {text!r}")
    if source == FUNCTION and not all(text.rpartition(":")[::2]):
        raise StudyError(f"{where}.{FUNCTION} must be module:name or path.py:name, got {text!r}")
    if source == CONFIG and "max_steps" in given:
        if "steps" in given:
            raise StudyError(f"{where}: steps and max_steps are the same, give one of them")
        given["steps"] = given.pop("max_steps")
    steps = given.pop("steps", None)
    if steps is not None:
        steps = values.count(f"{where}.steps", steps, 1)
    if source == CONFIG:
        for key in ("optim", "optim_args", *EMOTION_KEYS, "learning_rate", "lr_scheduler_type", "seed", "data_seed"):
            if key in given:
                belongs = "the study gives it to each run" if key.endswith(("seed", "_rate")) else OF_ARM
                raise StudyError(f"{where}.{key} cannot be given here: {belongs}")
    faults = read_faults(f"{where}.faults", given.pop("faults")) if "faults" in given else None
    return TaskSpec(name=name, steps=steps, options=given, faults=faults, **{source: text})


def _arm(name: str, value: Any) -> ArmSpec:
    where = f"arms.{name}"
    given = dict(values.mapping(where, value))
    if not isinstance(given.get("optim"), str):
        raise StudyError(
            f"{where}.optim must be a name such as adamw_torch or module:Class, got {given.get('optim')!r}"
        )
    if "learning_rate" in given or "seed" in given:
        key = "learning_rate" if "learning_rate" in given else "seed"
        hint = ": give learning_rates, a list" if key == "learning_rate" else ": the study gives it to each run"
        raise StudyError(f"{where}.{key} cannot be given here{hint}")
    optim_args = _optim_args(f"{where}.optim_args", given.pop("optim_args", None))
    if "emo_law" in given:
        optim_args["emo_law"] = given.pop("emo_law")
    emotion = given.pop("emotion", None)
    if emotion is not None and not isinstance(emotion, str):
        raise StudyError(f"{where}.emotion must be the name of a law, got {emotion!r}")
    emotion_args = dict(values.mapping(f"{where}.emotion_args", given.pop("emotion_args", {})))
    self_stop = values.one_of(f"{where}.self_stop", values.word(given.pop("self_stop", "off")), ("off", "log", "stop"))
    if emotion is None and (emotion_args or self_stop != "off"):
        key = "emotion_args" if emotion_args else "self_stop"
        raise StudyError(
            f"{where}.{key} is for an attached emotion: name its law in {where}.emotion, or use optim_args"
        )
    if emotion is not None and "emo_law" in optim_args:
        raise StudyError(f"{where} must have emotion (attached) or emo_law (an emo optimizer's own), got both")
    guard = given.pop("guard", None)
    if guard is not None:
        guard = values.one_of(f"{where}.guard", guard, GUARDS)
    rates = given.pop("learning_rates", None)
    schedule = given.pop("lr_scheduler_type", "linear")
    if not isinstance(schedule, str):
        raise StudyError(f"{where}.lr_scheduler_type must be a schedule's name, got {schedule!r}")
    return ArmSpec(
        name=name,
        optim=given.pop("optim"),
        optim_args=optim_args,
        emotion=emotion,
        emotion_args=emotion_args,
        self_stop=self_stop,
        lr_scheduler_type=schedule,
        learning_rates=None if rates is None else values.rates(f"{where}.learning_rates", rates),
        options=given,
        guard=guard,
    )


def _optim_args(where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.replace(" ", "").split(",") if part]
        if not all(key and equals and text for key, equals, text in parts):
            raise StudyError(f"{where} must be a mapping, or a text key=value,key=value, got {value!r}")
        return {key: text for key, _, text in parts}
    return dict(values.mapping(where, value))


def _check_sources(study: Study) -> None:
    for arm in study.arms.values():
        source = study.source_of(arm)
        if source is None:
            continue
        where = f"arms.{arm.name}"
        if source == arm.name or study.source_of(study.arms[source]) is not None:
            raise StudyError(f"{where}: {arm.law!r} must name an arm whose factors are its own, got {source!r}")
        if arm.learning_rates is not None:
            raise StudyError(f"{where}.learning_rates cannot be given: its rate is the tuned one of {source}")
        if arm.name == study.reference:
            raise StudyError(f"reference must be an arm that can be tuned, got {arm.name!r}, which follows {source}")
        if (arm.law or "").startswith("replay:") and study.seeds.report < 2:
            raise StudyError(f"{where}: {arm.law!r} replays another seed: seeds.report must be at least 2")


def _seeds(value: Any) -> Seeds:
    given = values.mapping("seeds", value)
    values.only(("tune", "report"), given, "seeds.")
    read = {
        key: values.count(f"seeds.{key}", given.get(key, default), 1) for key, default in (("tune", 1), ("report", 5))
    }
    return Seeds(**read)
