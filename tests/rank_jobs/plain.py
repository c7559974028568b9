"""Steps of a bare process group: who has a loss, who has none or an empty batch, and who does not step at all."""

from __future__ import annotations

import copy
import functools
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import emo_hf
from emo_hf import EmoNavi, EmoOptimizer, EmotionView, attach
from tests.emo_cases import OPTIMIZERS, lr_for
from tests.rank_jobs import ddp
from tests.rank_jobs.kinds import one_of_each_kind
from tests.ranks import numbers

RANK = int(os.environ.get("RANK", 0))


def optimizer(lr: float = 0.1) -> EmoOptimizer:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    return EmoNavi([param], lr=lr)


def observed_losses(folder: Path) -> list[EmotionView]:
    """Losses 1 and 3, in parts, as a number, as tensors, by a closure and in a copy: always the mean, 2."""
    dist.init_process_group("gloo")
    loss = 1.0 + 2.0 * RANK
    in_parts, by_closure = optimizer(), optimizer()
    in_parts.observe(torch.tensor([loss], dtype=torch.bfloat16), weight=0.25)
    in_parts.observe(loss, weight=0.5)
    in_parts.step()
    by_closure.step(lambda: loss)
    copied = copy.deepcopy(by_closure)
    copied.observe(loss)
    copied.step()
    return [in_parts.emotion, by_closure.emotion, copied.emotion]


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
    made = {}
    for cls in one_of_each_kind(OPTIMIZERS):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        emo = cls(model.parameters())
        if RANK == 0:
            get_optimizer_state_dict(model, emo)
        emo.observe(1.0 + RANK)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        emo.step()
        weights = [param.detach() for param in model.parameters()]
        made[cls.__name__] = {"weights": weights, "emotion": numbers(emo.emotion), "rule": emo.emotion_state()["rule"]}
    return made


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
    said = {name: stepping(lambda param, own=own: EmoNavi([param], **own[RANK])) for name, own in DIFFERENT.items()}
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


STEPS = 12
EMPTY = {0: (3, 4), 1: (0, 7)}
"""Rank → the steps at which its batch is empty."""

EMPTY_BATCHES = [("nan", "emonavi"), ("nan", "emovoid"), ("zero", "emonavi"), ("none", "emonavi")]
"""What the loss of an empty batch is, and an optimizer."""


def empty_batches(folder: Path, *, loss_of: str, optim: str) -> list[dict[str, Any]]:
    """The emotion and weights after each step of a loop in which gradients are summed by hand."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    emo = emo_hf.create_optimizer(optim, model, lr=lr_for(emo_hf.FAMILY[optim], 0.02))
    after = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(10 * step + RANK)
        inputs = torch.randn(0 if step in EMPTY[RANK] else 4, 3, generator=generator)
        errors = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square()
        # The mean over nothing is NaN; a sum over nothing is 0, and connected to the parameters.
        loss = errors.mean() if len(inputs) or loss_of == "nan" else errors.sum()
        emo.zero_grad()
        if len(inputs) or loss_of != "none":
            emo.observe(loss)
        loss.backward()
        for param in model.parameters():  # as loops over ragged data do
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad.nan_to_num_(0.0)
            dist.all_reduce(param.grad)
        emo.step()
        after.append({"emotion": numbers(emo.emotion), "weight": model.weight.detach().clone()})
    return after


JOBS = {
    "observed losses": observed_losses,
    "missing losses": missing_losses,
    "state made on one rank": state_made_on_one_rank,
    "uneven accumulation": uneven_accumulation,
    "different options": different_options,
    **{
        f"empty batches, {loss_of}, {optim}": functools.partial(empty_batches, loss_of=loss_of, optim=optim)
        for loss_of, optim in EMPTY_BATCHES
    },
    **ddp.JOBS,
}
