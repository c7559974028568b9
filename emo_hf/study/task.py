"""What a task in Python is made of, for studies whose task is no `emo-hf train` job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data and its loss.

    A study names a function, `module:name` or `path.py:name`, which is called with the seed (and with the task's
    further keys in the study as keywords) after every generator has been seeded, and returns a `Task`. The model must
    come out the same for the same seed, and so must the data.

    Attributes:
        model: what is trained.
        train_batches: seed → one pass over the training batches, in the order of that seed. It is called again, with
            another seed, when a pass is over. Batches are dicts, lists or tuples of tensors.
        loss: (model, batch) → the loss to go backward from, a tensor of one element.
        evaluate: model → numbers on data that is held out; "loss" must be among them. The model is in evaluation mode
            and gradients are off.
    """

    model: nn.Module
    train_batches: Callable[[int], Iterable[Any]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    evaluate: Callable[[nn.Module], Mapping[str, float]]
