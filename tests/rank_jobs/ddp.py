"""Data parallelism through accelerate: the Trainer, and a loop of one's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainerCallback

import emo_hf
from emo_hf.autonomous.local_sgd import LocalSGDCallback
from emo_hf.autonomous.weight_exchange import WeightExchangeCallback
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

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
        self.started.append(unwrap(optimizer)._rank_mean._under_way is not None)


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
        "emotion": asdict(unwrap(trainer.optimizer).emotion),
        "logged": [line["loss"] for line in tiny.train_lines(trainer)],
        "felt": notes.losses,
        "started": notes.started,
    }


def local_sgd(folder: Path) -> dict[str, Any]:
    """16 steps an epoch, weights averaged every 5 and at the end."""
    drift = Drift()
    result = train(
        folder, count=128, num_train_epochs=1, optim_args="emo_sync=local", average_tokens_across_devices=False,
        more_callbacks=[LocalSGDCallback(5), drift],
    )  # fmt: skip
    return {**result, "sums": drift.sums}


class Drift(TrainerCallback):
    """Notes a digest of the weights after every step."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.sums.append(sum(float(param.detach().double().sum()) for param in model.parameters()))


def local_sgd_refused(folder: Path) -> dict[str, Any]:
    local_sgd, exchange = LocalSGDCallback(5), WeightExchangeCallback(folder / "exchange", node="a", every=5)
    return {
        "said": [
            refusal(folder, local_sgd, average_tokens_across_devices=False),
            refusal(folder, local_sgd, optim_args="emo_sync=local"),
        ],
        "exchange said": refusal(folder, exchange),
    }


def refusal(folder: Path, callback: TrainerCallback, **changes: Any) -> str:
    try:
        train(folder, more_callbacks=[callback], **changes)
    except ValueError as error:
        return str(error)
    return "nothing"


def loop(folder: Path, *, accumulation: int) -> dict[str, Any]:
    """What a rank of an accelerate loop ends with."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
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
    return {"weights": [p.detach().clone() for p in model.parameters()], "emotion": asdict(inner.emotion)}


emo_hf.register()
JOBS = {
    "trainer": train,
    "trainer accumulating": functools.partial(train, gradient_accumulation_steps=2),
    "trainer on whole batches": functools.partial(train, **WHOLE_BATCHES),
    "trainer apart": functools.partial(train, optim_args="emo_sync=local", num_train_epochs=2),
    "local sgd": local_sgd,
    "local sgd refused": local_sgd_refused,
    "loop": functools.partial(loop, accumulation=1),
    "loop accumulating": functools.partial(loop, accumulation=3),
}
