"""What can be trained, one file a task.

A task says how data become features, which model, which collator, which figures and which Trainer: see `task.Task`.
A new one is a file here, named after it, with an instance called `TASK`, and its name in `TASKS`. The files are
imported when their task is wanted, so that what one of them needs beside the Trainer need not be installed for others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emo_hf.train.tasks.task import Task

TASKS = (
    "sequence-classification",
    "token-classification",
    "causal-lm",
    "instruction-tuning",
    "preference",
    "image-classification",
)
"""Every task; the first is the default."""


def get_task(name: str) -> Task:
    """The task of that name, one of `TASKS`."""
    task: Task = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return task
