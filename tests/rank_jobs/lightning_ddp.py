"""Lightning's DDP on the ranks of one job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from emo_hf.integrations.accelerate import unwrap
from emo_hf.integrations.lightning import EmoLightningCallback
from tests.integrations import test_lightning as lightning_runs

WORLD = 2
BATCHES = 10  # of all ranks


class OnItsWay(pl.Callback):
    """Notes whether the loss was on its way to the other ranks when backward was done."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(unwrap(trainer.optimizers[0])._engine.rank_mean._under_way is not None)


def _fit(kind: type[Any], optimizer: Any, accumulate: int) -> dict[str, Any]:
    module, felt, on_its_way = kind(optimizer), lightning_runs.Felt(), OnItsWay()
    fit = lightning_runs.trainer(
        EmoLightningCallback(self_stop="stop"), felt, on_its_way,
        devices=WORLD, strategy="ddp", accumulate_grad_batches=accumulate,
    )  # fmt: skip
    fit.fit(module, lightning_runs.batches(BATCHES))
    weights = torch.cat([param.detach().flatten() for param in module.parameters()])
    return {"losses": module.losses, "felt": felt.losses[0], "weights": weights, "on_its_way": on_its_way.seen}


def automatic(folder: Path) -> dict[str, Any]:
    return _fit(lightning_runs.Regression, lightning_runs.navi, 1)


def accumulating(folder: Path) -> dict[str, Any]:
    return _fit(lightning_runs.Regression, lightning_runs.attached, 3)


def manual(folder: Path) -> dict[str, Any]:
    return _fit(lightning_runs.ManualRegression, lightning_runs.navi, 1)


JOBS = {"automatic": automatic, "accumulating": accumulating, "manual": manual}
