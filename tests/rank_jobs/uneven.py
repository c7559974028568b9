"""Two ranks of which one has an empty batch now and then: no samples, and so a NaN, no loss, or a loss of zero."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.emo_cases import lr_for
from tests.ranks import numbers

RANK = int(os.environ.get("RANK", 0))
STEPS = 12
EMPTY = {0: (3, 4), 1: (0, 7)}
"""Rank → the steps at which its batch is empty."""

OF_EACH_LAW = {cls.version_named(None).law: name for name, cls in emo_hf.FAMILY.items()}
"""Law → an optimizer that follows it: what is at stake here is the loss."""


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a rank has of a step: 4 samples, or none."""
    generator = torch.Generator().manual_seed(10 * step + RANK)
    inputs = torch.randn(0 if step in EMPTY[RANK] else 4, 3, generator=generator)
    return inputs, inputs.sum(dim=1, keepdim=True)


def loop(folder: Path, *, loss_of: str, optim: str) -> dict[str, Any]:
    """A loop over accelerate's DDP; the emotion and weights after each step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    accelerator = Accelerator(cpu=True)
    inner = emo_hf.create_optimizer(optim, model, lr=lr_for(emo_hf.FAMILY[optim], 0.02))
    model, optimizer = accelerator.prepare(model, inner)
    after = []
    for step in range(STEPS):
        inputs, target = batch(step)
        errors = (model(inputs) - target).square()
        # The mean over nothing is NaN; a sum over nothing is 0, and connected to the parameters.
        loss = errors.mean() if len(inputs) or loss_of == "nan" else errors.sum()
        accelerator.backward(loss)
        for param in model.parameters():  # as loops over ragged data do; what is at stake here is the emotion
            param.grad.nan_to_num_(0.0)
        optimizer.step()
        optimizer.zero_grad()
        after.append({"emotion": numbers(inner.emotion), "weight": model.module.weight.detach().clone()})
    return {"after": after}


def without_a_loss(folder: Path, *, optim: str) -> dict[str, Any]:
    """A rank without samples leaves its loss out, and all average gradients by hand."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = emo_hf.create_optimizer(optim, model, lr=lr_for(emo_hf.FAMILY[optim], 0.02))
    after = []
    for step in range(STEPS):
        inputs, target = batch(step)
        optimizer.zero_grad()
        if len(inputs):
            loss = (model(inputs) - target).square().mean()
            optimizer.observe(loss)
            loss.backward()
        for param in model.parameters():
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            torch.distributed.all_reduce(param.grad)
        optimizer.step()
        after.append({"emotion": numbers(optimizer.emotion), "weight": model.weight.detach().clone()})
    return {"after": after}


def trainer(folder: Path) -> dict[str, Any]:
    """A Trainer whose batches on one rank have labels to ignore only, now and then: the mean over none is NaN."""
    calls = iter(range(1000))

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        ignored = next(calls) in EMPTY[RANK]
        labels = torch.full_like(labels, -100) if ignored else labels
        mean = cross_entropy(outputs.logits, labels)
        # Its gradients are those of nothing, 0: what is at stake here is the emotion.
        return mean if not ignored else outputs.logits.sum() * 0.0 + mean.detach()

    made = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(96), compute_loss_func=loss, max_steps=STEPS,
        average_tokens_across_devices=False,
    )  # fmt: skip
    made.train()
    return {
        "weights": [param.detach().clone() for param in made.model.parameters()],
        "emotion": numbers(unwrap(made.optimizer).emotion),
        "lines": [
            {key: value for key, value in line.items() if key.startswith("emo/")} for line in tiny.train_lines(made)
        ],
    }


JOBS = {
    **{
        f"{optim} {loss_of}": functools.partial(loop, loss_of=loss_of, optim=optim)
        for optim in OF_EACH_LAW.values()
        for loss_of in ("nan", "zero")
    },
    **{f"{optim} none": functools.partial(without_a_loss, optim=optim) for optim in OF_EACH_LAW.values()},
    "trainer": trainer,
}
