"""From a planned run to a Trainer that will do it: the only place that knows how `emo-hf train` makes one."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from emo_hf.laws.ablation import NONE, read_ablation
from emo_hf.optim.family import family_names
from emo_hf.study.errors import StudyError
from emo_hf.study.function_trainer import FunctionTrainer, task_function
from emo_hf.study.plan import Run
from emo_hf.study.specification import ArmSpec
from emo_hf.study.task import Task
from emo_hf.train.config import Job, read_job
from emo_hf.train.errors import RecipeError
from emo_hf.train.train import prepare
from emo_hf.trainer.callbacks import EmoCallback, as_text
from emo_hf.trainer.self_stop import SelfStop


def make_trainer(run: Run, folder: Path) -> Trainer:
    """The Trainer of a run, everything seeded, nothing written but to `folder`.

    Args:
        run: the run.
        folder: an empty folder.

    Raises:
        StudyError: if the task, the optimizer or their arguments cannot be used.
    """
    if run.task.function is not None:
        args = _training_arguments(run, folder)
        set_seed(run.seed)
        task = task_function(run.task)(run.seed, **run.task.options)
        if not isinstance(task, Task):
            raise StudyError(f"tasks.{run.task.name}.function must return a Task, got {type(task).__name__}")
        trainer: Trainer = FunctionTrainer(task, args)
    else:
        job = _job(run, folder)
        try:
            trainer, _ = prepare(job)
        except RecipeError as error:
            raise StudyError(f"tasks.{run.task.name}: {error}") from error
        if trainer.eval_dataset is None:
            raise StudyError(f"tasks.{run.task.name} has no validation data, by which a study compares")
    trainer.remove_callback(PrinterCallback)
    if ":" in run.arm.optim:
        trainer.optimizer_cls_and_kwargs = _own_class(run.arm, run.rate)
    callback = emotion_callback(run.arm)
    if callback is not None:
        trainer.add_callback(callback)
    return trainer


def check(run: Run, folder: Path) -> None:
    """Find what is wrong with a run before any run begins: arguments, names, what is not installed.

    Raises:
        StudyError: as `make_trainer`.
    """
    emotion_callback(run.arm)
    if "emo_law" in run.arm.optim_args and run.arm.optim not in family_names() and ":" not in run.arm.optim:
        known = ", ".join(family_names())
        raise StudyError(f"arms.{run.arm.name}.emo_law is for {known}: attach an emotion to {run.arm.optim} instead")
    if ":" in run.arm.optim:
        cls, kwargs = _own_class(run.arm, run.rate)
        try:
            cls([torch.nn.Parameter(torch.zeros(1))], **kwargs)
        except (TypeError, ValueError) as error:
            raise StudyError(f"arms.{run.arm.name}.optim_args cannot be used: {error}") from error
    if run.task.function is not None:
        task_function(run.task)
        _training_arguments(run, folder)
    else:
        _job(run, folder)


def emotion_callback(arm: ArmSpec) -> EmoCallback | None:
    """What attaches an arm's emotion to its optimizer; None for arms without one."""
    if arm.emotion is None:
        return None
    if arm.optim in family_names():
        raise StudyError(f"arms.{arm.name}.emotion: {arm.optim} has one of its own, choose its law with emo_law")
    law = NONE if _is_ablation(arm.emotion) else arm.emotion
    try:
        return EmoCallback(emotion=law, self_stop=SelfStop(action=arm.self_stop), **arm.emotion_args)
    except (TypeError, ValueError) as error:
        raise StudyError(f"arms.{arm.name}.emotion: {error}") from error


def _is_ablation(law: Any) -> bool:
    """Whether it is put on by `AblationCallback` and not by the law's name."""
    return isinstance(law, str) and ":" in law


def check_law(arm: ArmSpec, arms: Any) -> None:
    """Refuse `constant:` and `replay:` with what can be neither read nor followed.

    Raises:
        StudyError: naming the arm.
    """
    law = arm.law
    if law is None or not _is_ablation(law) or law.partition(":")[2] in arms:
        return
    try:
        found = read_ablation(law)
    except ValueError as error:
        raise StudyError(f"arms.{arm.name}: {error}; or the name of an arm: {', '.join(arms)}") from error
    if found is None:
        raise StudyError(
            f"arms.{arm.name}: a law, none, constant:X, constant:ARM, replay:FILE#RUN or replay:ARM, got {law!r}"
        )


def _settings(run: Run, folder: Path) -> dict[str, Any]:
    """What the study gives to every run, over whatever the task says."""
    arm = run.arm
    optim_args = _optim_args(arm)
    own_class = ":" in arm.optim
    steps = run.steps
    every = max(1, math.ceil(steps / run.evaluations)) if steps is not None else min(1 / run.evaluations, 0.9999)
    return {
        "output_dir": str(folder),
        "optim": "adamw_torch" if own_class else arm.optim,
        "optim_args": None if own_class or not optim_args else as_text(_plain_texts(optim_args)),
        "learning_rate": run.rate,
        "lr_scheduler_type": arm.lr_scheduler_type,
        **({} if steps is None else {"max_steps": steps}),
        "seed": run.seed,
        "data_seed": run.seed,
        "eval_strategy": "steps",
        "eval_steps": every,
        "eval_on_start": True,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        **({} if arm.guard is None else {"max_grad_norm": 0.0}),  # a guard takes the place of clipping
        **arm.options,
    }


def _optim_args(arm: ArmSpec) -> dict[str, Any]:
    """Without an ablation that is put on when training begins."""
    given = dict(arm.optim_args)
    if _is_ablation(given.get("emo_law")):
        del given["emo_law"]
    return given


def _plain_texts(optim_args: Any) -> dict[str, Any]:
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in optim_args.items()}


def _training_arguments(run: Run, folder: Path) -> TrainingArguments:
    settings = _settings(run, folder)
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise StudyError(f"arms.{run.arm.name}.{unknown[0]} is no argument of the Trainer")
    try:
        return _with_rate(TrainingArguments(**settings, remove_unused_columns=False, dataloader_pin_memory=False), run)
    except (TypeError, ValueError, ImportError) as error:
        raise StudyError(f"arms.{run.arm.name}: {' '.join(str(error).split())}") from error


def _job(run: Run, folder: Path) -> Job:
    """The job of `emo-hf train` with the study's settings over it, by way of a file: one way to read them all."""
    config = Path(str(run.task.config)).expanduser()
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"tasks.{run.task.name}.config: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise StudyError(f"tasks.{run.task.name}.config must be a file of `key: value` lines, got {str(config)!r}")
    merged = folder / "job.yaml"
    merged.write_text(yaml.safe_dump({**content, **run.task.options, **_settings(run, folder)}), encoding="utf-8")
    try:
        job = read_job([str(merged)])
    except RecipeError as error:
        text = str(error).removeprefix(f"{merged}: ")
        raise StudyError(f"tasks.{run.task.name} with arms.{run.arm.name}: {text}") from error
    _with_rate(job.training, run)
    return job


def _with_rate(args: TrainingArguments, run: Run) -> TrainingArguments:
    """The study's rate, where a generation would take its own in place of the Trainer's default."""
    left = next(field.default for field in dataclasses.fields(args) if field.name == "learning_rate")
    taken_for_left = run.arm.optim in family_names() and run.rate == left
    args.learning_rate = math.nextafter(run.rate, math.inf) if taken_for_left else run.rate
    return args


def _own_class(arm: ArmSpec, rate: float) -> tuple[Any, dict[str, Any]]:
    module, _, name = arm.optim.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise StudyError(
            f"arms.{arm.name}.optim must be module:Class that can be imported, got {arm.optim!r}: {error}"
        ) from error
    return cls, {"lr": rate, **{key: _value(value) for key, value in _optim_args(arm).items()}}


def _value(given: Any) -> Any:
    if isinstance(given, list):
        return tuple(map(_value, given))
    try:  # YAML reads 1e-5 as a text
        return float(given) if isinstance(given, str) else given
    except ValueError:
        return given
