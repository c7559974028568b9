"""From a planned run to a Trainer that will do it: the only place that knows how `emo-hf train` makes one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from emo_hf.cli_errors import UserError, read_yaml, saying
from emo_hf.optim.family import family_names
from emo_hf.study.plan import Run
from emo_hf.study.schema import ArmSpec
from emo_hf.study.task import HALVES, Task, named_in
from emo_hf.train.config import read_job
from emo_hf.train.options import Job
from emo_hf.train.train import prepare
from emo_hf.trainer.callbacks import EmoCallback
from emo_hf.trainer.options import as_text
from emo_hf.trainer.self_stop import SelfStop

PASS_SEEDS = 1_000_003
"""How far apart the seeds of two passes over the data lie."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A Trainer that has not trained yet, and how its model is judged.

    Attributes:
        trainer: the Trainer.
        measure: half → numbers of the model as it is now; the model is in evaluation mode and gradients are off.
        task: the task in Python, if it is one.
    """

    trainer: Trainer
    measure: Callable[[str], Mapping[str, float]]
    task: Task | None = None


def make_trainer(run: Run, folder: Path) -> Prepared:
    """The Trainer of a run, everything seeded, nothing written but to `folder`, which is empty.

    Raises:
        UserError: if the task, the optimizer or their arguments cannot be used.
    """
    run = dataclasses.replace(run, arm=with_average(run.arm))
    prepared = _of_function(run, folder) if run.task.function is not None else _of_config(run, folder)
    trainer = prepared.trainer
    trainer.remove_callback(PrinterCallback)
    _equip(trainer, run)
    if prepared.task is not None and prepared.task.prepare is not None:
        prepared.task.prepare(trainer)
    if run.arm.callback is not None:
        trainer.add_callback(named_in(f"arms.{run.arm.name}.callback", run.arm.callback)())
    return prepared


def check(run: Run, folder: Path) -> None:
    """Find what is wrong with a run before any run begins: arguments, names, what is not installed.

    Raises:
        UserError: as `make_trainer`.
    """
    run = dataclasses.replace(run, arm=with_average(run.arm))
    arm = run.arm
    if arm.callback is not None:
        named_in(f"arms.{arm.name}.callback", arm.callback)
    if run.task.function is not None:
        named_in(f"tasks.{run.task.name}.function", run.task.function)
    args = _training_arguments(run, folder) if run.task.function is not None else _job(run, folder).training
    model, wrong = torch.nn.Linear(1, 1), (TypeError, ValueError, ImportError)
    with saying(f"arms.{arm.name}: ", *wrong):
        trainer = Trainer(model=model, args=args, train_dataset=[{}], eval_dataset=[{}])
    callback = _equip(trainer, run)
    with saying(f"arms.{arm.name}: ", *wrong):
        trainer.create_optimizer_and_scheduler(run.steps or 1)
        if callback is not None:
            callback.on_train_begin(args, trainer.state, trainer.control, model=model, optimizer=trainer.optimizer)


def with_average(arm: ArmSpec) -> ArmSpec:
    """The arm as it has to be given to the Trainer so that an average of its weights is kept."""
    if not arm.average:
        return arm
    if arm.optim in family_names() or arm.optim.startswith("emo_hf:"):
        return dataclasses.replace(arm, optim_args={**arm.optim_args, "average_weights": True})
    options = {"average_weights": True, **arm.emotion_args}
    return dataclasses.replace(arm, emotion=arm.emotion or "none", emotion_args=options)


def _equip(trainer: Trainer, run: Run) -> EmoCallback | None:
    """Give a Trainer what an arm has beside the Trainer's arguments: a class of its own, a law that is attached."""
    arm, where = run.arm, f"arms.{run.arm.name}"
    ours = arm.optim in family_names()
    if ":" in arm.optim:
        cls = named_in(f"{where}.optim", arm.optim)
        trainer.optimizer_cls_and_kwargs = _without_empty_groups(cls), {"lr": run.rate, **_numbers(arm.optim_args)}
    elif "emo_law" in arm.optim_args and not ours:
        known = ", ".join(family_names())
        raise UserError(f"{where}.emo_law is for {known}: attach an emotion to {arm.optim} instead")
    if arm.emotion is None:
        return None
    if ours:
        raise UserError(f"{where}.emotion: {arm.optim} has one of its own, choose its law with emo_law")
    with saying(f"{where}.emotion: ", TypeError, ValueError):
        callback = EmoCallback(emotion=arm.emotion, self_stop=SelfStop(action=arm.self_stop), **arm.emotion_args)
    trainer.add_callback(callback)
    return callback


def _without_empty_groups(cls: Any) -> Any:
    """`cls`, handed no empty group: with LoRA one of the Trainer's is empty, and some optimizers cannot take that."""

    def begin(self: Any, groups: Iterable[Mapping[str, Any]], **options: Any) -> None:
        cls.__init__(self, [group for group in groups if group["params"]], **options)

    return type(cls.__name__, (cls,), {"__init__": begin})


def _numbers(given: Any) -> Any:
    """YAML reads 1e-5 as a text, and optimizers want tuples."""
    if isinstance(given, Mapping):
        return {key: _numbers(value) for key, value in given.items()}
    if isinstance(given, list):
        return tuple(map(_numbers, given))
    with contextlib.suppress(ValueError):
        return float(given) if isinstance(given, str) else given
    return given


def _of_function(run: Run, folder: Path) -> Prepared:
    args = _training_arguments(run, folder)
    set_seed(run.seed)
    where = f"tasks.{run.task.name}.function"
    task = named_in(where, str(run.task.function))(run.seed, **run.task.options)
    if not isinstance(task, Task):
        raise UserError(f"{where} must return a Task, got {type(task).__name__}")
    trainer = FunctionTrainer(task, args)

    def measure(half: str) -> Mapping[str, float]:
        measured = task.evaluate(trainer.model, half)
        if "loss" not in measured:
            raise UserError(f"{where}: evaluate must return a mapping with 'loss', got {sorted(measured)}")
        return measured

    return Prepared(trainer=trainer, measure=measure, task=task)


def _of_config(run: Run, folder: Path) -> Prepared:
    """The held-out data of an `emo-hf train` job are cut in two, the same way in all runs."""
    job = _job(run, folder)
    with saying(f"tasks.{run.task.name}: ", UserError):
        trainer, _ = prepare(job)
    data = trainer.eval_dataset
    if data is None or isinstance(data, dict) or len(data) < 2:
        raise UserError(f"tasks.{run.task.name} must have validation data, of two examples at least, to be judged by")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    parts = dict(zip(HALVES, (order[: len(order) // 2], order[len(order) // 2 :]), strict=True))
    halves = {
        half: data.select(part) if hasattr(data, "select") else Subset(data, part) for half, part in parts.items()
    }

    def measure(half: str) -> Mapping[str, float]:
        found = trainer.evaluation_loop(trainer.get_eval_dataloader(halves[half]), half, metric_key_prefix="eval")
        return {key.removeprefix("eval_"): value for key, value in found.metrics.items() if isinstance(value, float)}

    return Prepared(trainer=trainer, measure=measure)


class FunctionTrainer(Trainer):
    """Trains a `Task` for `max_steps`: batches and loss are the task's own, all else is the Trainer's."""

    def __init__(self, task: Task, args: TrainingArguments) -> None:
        self._task = task
        batches = _Passes(task, args.seed)
        super().__init__(model=task.model, args=args, train_dataset=batches, eval_dataset=batches)
        self.model_accepts_loss_kwargs = False  # whatever `forward` looks like: the loss is the task's

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=None)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss = self._task.loss(model, inputs)
        return (loss, None) if return_outputs else loss


class _Passes(IterableDataset[Any]):
    """Pass after pass over the data, without end: `max_steps` ends it."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task = task
        self._seed = seed

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.count():
            batches = iter(self._task.train_batches(self._seed + PASS_SEEDS * number))
            try:
                yield next(batches)
            except StopIteration:
                raise ValueError("train_batches must give one batch at least, got none") from None
            yield from batches


def _settings(run: Run, folder: Path) -> dict[str, Any]:
    """What the study gives to every run, over whatever the task's file says."""
    arm, steps = run.arm, run.steps
    own_class = ":" in arm.optim
    args = {} if own_class else arm.optim_args
    every = max(1, math.ceil(steps / run.evaluations)) if steps is not None else min(1 / run.evaluations, 0.9999)
    lower_case = {key: str(value).lower() if isinstance(value, bool) else value for key, value in args.items()}
    chosen = {
        "output_dir": str(folder), "report_to": "none", "disable_tqdm": True,
        "optim": "adamw_torch" if own_class else arm.optim,
        "optim_args": None if not args else as_text(lower_case),
        "learning_rate": run.rate, "lr_scheduler_type": arm.lr_scheduler_type,
        **({} if steps is None else {"max_steps": steps}),
        "seed": run.seed, "data_seed": run.seed,
        "eval_strategy": "steps", "eval_steps": every, "eval_on_start": True,
        "save_strategy": "no", "load_best_model_at_end": False,
        "logging_strategy": "steps", "logging_steps": 1, "logging_nan_inf_filter": False,
        **run.task.training,
        **arm.options,
    }  # fmt: skip
    schedule = chosen.get("lr_scheduler_kwargs")
    if isinstance(schedule, dict) and steps is not None:
        # `num_decay_steps: 0.2` is a fifth of the run's steps, as a `warmup_steps` below 1 is in the Trainer.
        steps_of = {key: value for key, value in schedule.items() if key.endswith("_steps")}
        shares = {key: value for key, value in steps_of.items() if isinstance(value, float) and value < 1.0}
        chosen["lr_scheduler_kwargs"] = schedule | {key: round(value * steps) for key, value in shares.items()}
    return chosen


def _training_arguments(run: Run, folder: Path) -> TrainingArguments:
    settings = _settings(run, folder)
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if unknown := sorted(settings.keys() - known):
        raise UserError(f"arms.{run.arm.name}.{unknown[0]} is no argument of the Trainer")
    with saying(f"arms.{run.arm.name}: ", TypeError, ValueError, ImportError):
        return TrainingArguments(**settings, remove_unused_columns=False, dataloader_pin_memory=False)


_LAW_OF_NO_JOB = {"emotion": None, "emotion_args": None, "evaluate_weights_too": False}  # arms have their own


def _job(run: Run, folder: Path) -> Job:
    """The job of `emo-hf train` with the study's settings over it, by way of a file: one way to read them all."""
    config = Path(str(run.task.config)).expanduser()
    with saying(f"tasks.{run.task.name}.config: {str(config)!r} ", UserError):
        content = read_yaml(config)
    merged = folder / "job.yaml"
    settings = {**content, **run.task.options, **_LAW_OF_NO_JOB, **_settings(run, folder)}
    merged.write_text(yaml.safe_dump(settings), encoding="utf-8")
    try:
        return read_job([str(merged)])
    except UserError as error:
        text = str(error).removeprefix(f"{merged}: ")
        raise UserError(f"tasks.{run.task.name} with arms.{run.arm.name}: {text}") from error
