"""Data parallelism through accelerate: the Trainer, and a loop of one's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.ranks import numbers

BATCH = 4

# This model ignores `num_items_in_batch`, which the Trainer does not see: with `average_tokens_across_devices` it
# multiplies loss and gradient by the number of ranks.
WHOLE_BATCHES: dict[str, Any] = {
    "count": 40,
    "optim": "emofact",
    "num_train_epochs": 4,
    "average_tokens_across_devices": False,
}


class Notes(tiny.Felt):
    """Notes each loss that the emotion is given, and whether it was on its way when backward was done."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[bool] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.started.append(unwrap(optimizer)._engine.rank_mean._under_way is not None)


def train(
    folder: Path, *, count: int = 37, batch: int = BATCH, more_callbacks: Sequence[Any] = (), **changes: Any
) -> dict[str, Any]:
    """What a rank of a Trainer run ends with; 37 examples leave an uneven last batch."""
    notes = Notes()
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(count), callbacks=[notes, *more_callbacks],
        per_device_train_batch_size=batch, **({"num_train_epochs": 12} | changes),
    )  # fmt: skip
    trainer.train()
    return {
        "weights": [param.detach().clone() for param in trainer.model.parameters()],
        "emotion": numbers(unwrap(trainer.optimizer).emotion),
        "logged": [line["loss"] for line in tiny.train_lines(trainer)],
        "felt": notes.losses,
        "started": notes.started,
    }


def loop(folder: Path) -> dict[str, Any]:
    """What a rank of an accelerate loop ends with."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    inputs = torch.randn(43, 3)
    data = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True) + 3.0), batch_size=BATCH)
    model = nn.Linear(3, 1)
    inner = emo_hf.EmoFact(model.parameters(), lr=0.01)
    model, optimizer, data = accelerator.prepare(model, inner, data)
    for _ in range(10):
        for batch, target in data:
            with accelerator.accumulate(model):
                accelerator.backward((model(batch) - target).square().mean())
                optimizer.step()
                optimizer.zero_grad()
    return {"weights": [p.detach().clone() for p in model.parameters()], "emotion": numbers(inner.emotion)}


JOBS = {
    "trainer accumulating": functools.partial(train, gradient_accumulation_steps=2),
    "trainer on whole batches": functools.partial(train, **WHOLE_BATCHES),
    "trainer apart": functools.partial(train, optim_args="emo_sync=local", num_train_epochs=2),
    "loop": loop,
}
