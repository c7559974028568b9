"""A Trainer for a `Task`: batches, loss and evaluation are the task's own, all else is the Trainer's."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerControl, TrainingArguments

from emo_hf.study.errors import StudyError
from emo_hf.study.specification import TaskSpec
from emo_hf.study.task import Task

PASS_SEEDS = 1_000_003
"""How far apart the seeds of two passes over the data lie."""


def task_function(spec: TaskSpec) -> Any:
    """The function that makes a task.

    Raises:
        StudyError: if it cannot be found.
    """
    place, _, name = str(spec.function).rpartition(":")
    where = f"tasks.{spec.name}.function"
    try:
        if place.endswith(".py"):
            loader = importlib.util.spec_from_file_location(Path(place).stem, Path(place).expanduser())
            if loader is None or loader.loader is None or not Path(place).is_file():
                raise StudyError(f"{where} must be a file that exists, got {place!r}")
            module = importlib.util.module_from_spec(loader)
            loader.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except ImportError as error:
        raise StudyError(f"{where} must be a module that can be imported, got {place!r}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise StudyError(f"{where} must name a function, got {name!r}, which {place!r} does not have")
    return found


class FunctionTrainer(Trainer):
    """Trains a `Task`.

    Args:
        task: what is trained.
        args: the Trainer's arguments, with `max_steps`.
    """

    control: TrainerControl

    def __init__(self, task: Task, args: TrainingArguments) -> None:
        self._task = task
        self._batches = _Passes(task, args.seed)
        super().__init__(model=task.model, args=args, train_dataset=self._batches, eval_dataset=self._batches)
        self.model_accepts_loss_kwargs = False  # whatever `forward` looks like: the loss is the task's

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._batches, batch_size=None)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss = self._task.loss(model, inputs)
        return (loss, None) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        model, optimizer = self.model, self.optimizer
        model.eval()
        if callable(getattr(optimizer, "eval", None)):  # Schedule-Free has other weights then
            optimizer.eval()
        with torch.no_grad():
            measured: Mapping[str, float] = self._task.evaluate(model)
        if "loss" not in measured:
            raise ValueError(f"evaluate must return a mapping with 'loss', got {sorted(measured)}")
        metrics = {f"eval_{name}": float(value) for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


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
