"""Steps of a bare process group: who has a loss, who has none, and who does not step at all."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from emo_hf import EmoNavi, EmoOptimizer, attach
from tests.emo_cases import OPTIMIZERS
from tests.rank_jobs.kinds import one_of_each_kind
from tests.ranks import numbers

RANK = int(os.environ["RANK"])


def optimizer(lr: float = 0.1) -> EmoOptimizer:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    return EmoNavi([param], lr=lr)


def observed_losses(folder: Path) -> dict[str, Any]:
    """Losses 1 and 3, as numbers, as tensors, in parts and by a closure: always the mean, 2."""
    dist.init_process_group("gloo")
    loss = 1.0 + 2.0 * RANK
    felt = []
    emo = optimizer()
    emo.observe(loss)
    emo.step()
    felt.append(emo.emotion.short)
    emo = optimizer()
    emo.observe(torch.tensor([loss], dtype=torch.bfloat16), weight=0.25)
    emo.observe(torch.tensor(loss), weight=0.5)
    emo.step()
    felt.append(emo.emotion.short)
    emo = optimizer()
    emo.step(lambda: loss)
    felt.append(emo.emotion.short)
    copied = copy.deepcopy(emo)
    copied.observe(loss)
    copied.step()
    return {"felt": felt, "after the copy": copied.emotion.observations}


def missing_losses(folder: Path) -> dict[str, Any]:
    emo = optimizer()
    views = []
    for loss in ((5.0, None), (None, 7.0), (None, None), (float("nan"), 1.0), (1.0, float("inf")), (2.0, 4.0)):
        if loss[RANK] is not None:
            emo.observe(loss[RANK])
        emo.step()
        views.append((emo.emotion.short, emo.emotion.observations, emo.emotion.skipped))
    warm_up = optimizer(lr=0.0)  # a pipeline: the loss lies on the last rank, the first step is at rate 0
    if RANK == 1:
        warm_up.observe(3.0)
    warm_up.step()
    return {"views": views, "warm-up": warm_up.emotion.short}


def state_made_on_one_rank(folder: Path) -> dict[str, Any]:
    """What both ranks have after a first step, before which one of them has had torch create the state."""
    return {cls.__name__: first_step(cls) for cls in one_of_each_kind(OPTIMIZERS)}


def first_step(cls: type[EmoOptimizer]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    emo = cls(model.parameters())
    if RANK == 0:
        get_optimizer_state_dict(model, emo)
    emo.observe(1.0 + RANK)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    emo.step()
    return {
        "weights": [param.detach() for param in model.parameters()],
        "emotion": numbers(emo.emotion),
        "memory": emo.emotion_state()["rule"],
    }


def uneven_accumulation(folder: Path) -> dict[str, Any]:
    """A rank may run more micro-batches than another inside of DDP's no_sync()."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    accelerator = Accelerator(cpu=True)
    inner = EmoNavi(model.parameters())
    model, prepared = accelerator.prepare(model, inner)
    felt = []
    for _ in range(3):
        with model.no_sync():
            for _ in range(1 + 2 * RANK):
                accelerator.backward(model(torch.ones(1, 2)).sum() * 0.0 + 1.0)
        accelerator.backward(model(torch.ones(1, 2)).sum() * 0.0 + 1.0)
        prepared.step()
        prepared.zero_grad()
        felt.append(inner.emotion.short)
    return {"felt": felt, "weight": model.module.weight.detach()}


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "law": ({"emo_law": "v3.1"}, {"emo_law": "v3.6"}),
    "weight decay": ({}, {"weight_decay": 0.2}),
    "non-finite gradients": ({}, {"nonfinite": "skip_step"}),
    "generation": ({}, {"version": "v3.6"}),
    "emotion of rank 0 its own": ({"emo_sync": "local"}, {}),
    "emotion of rank 1 its own": ({}, {"emo_sync": "local"}),
    "learning rate": ({}, {"lr": 0.5}),
    "each its own emotion": ({"emo_sync": "local"}, {"emo_sync": "local", "emo_law": "v3.6"}),
}
"""What the two ranks are made with."""


def different_options(folder: Path) -> dict[str, str]:
    """What is said to each rank within 12 steps."""
    said = {}
    for name, options in DIFFERENT.items():
        said[name] = stepping(lambda param, options=options: EmoNavi([param], **options[RANK]))
    said["attached"] = stepping(lambda param: attach(torch.optim.AdamW([param]), "v3.1" if RANK else "robust"))
    return said


def stepping(make: Any) -> str:
    param = nn.Parameter(torch.ones(3))
    emo = make(param)
    try:
        for _ in range(12):
            param.grad = torch.ones(3)
            emo.observe(1.0)
            getattr(emo, "optimizer", emo).step()
            time.sleep(0.1 if emo.emo_sync == "local" else 0.0)
    except RuntimeError as error:
        return str(error)
    return ""


JOBS = {
    "observed losses": observed_losses,
    "missing losses": missing_losses,
    "state made on one rank": state_made_on_one_rank,
    "uneven accumulation": uneven_accumulation,
    "different options": different_options,
}
