"""Models under FSDP2, DDP and in one process, and runs that see the same batches in each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

import emo_hf
from emo_hf import EmoOptimizer
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import LAWS
from tests.emo_cases import OPTIMIZERS, lr_for, version_of
from tests.rank_jobs.kinds import one_of_each_kind
from tests.ranks import numbers

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
WARM_UP = 33
"""Losses that are felt before the first gradient: the self-stop window is full by then."""

STEPS, LATER = 5, 3
"""Steps before a checkpoint, and after it."""

BATCH = 4
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)

EVERY: list[type[torch.optim.Optimizer]] = [*OPTIMIZERS, AdamW]
"""The family, and an optimizer that an emotion is attached to."""

KINDS: list[type[torch.optim.Optimizer]] = [*one_of_each_kind(OPTIMIZERS), AdamW]

VARIANTS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "plain": ({}, EVERY),
    "shadow, uphill": ({"use_shadow": True, "maximize": True}, one_of_each_kind(OPTIMIZERS)),
}


def model() -> nn.Sequential:
    """Rows that two ranks cannot share evenly (5, 3), and a layer of which one rank holds nothing (1)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1))


def sharded(dtype: torch.dtype = torch.float32) -> nn.Module:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    whole = model().to(dtype)
    fully_shard(whole, mesh=init_device_mesh("cpu", (WORLD,)))
    return whole


def distributed() -> nn.Module:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return DistributedDataParallel(model())


MODELS = {"fsdp2": sharded, "ddp": distributed, "alone": model}
SYNC = {"fsdp2": "global", "ddp": "global", "alone": "local"}


def make(cls: type[torch.optim.Optimizer], module: nn.Module, *, emo_sync: str = "global", **options: Any) -> Any:
    """An optimizer with two parameter groups; the first has parameters of every kind of shard.

    Laws that throw a coin, whose fall is the rounding of the loss, take a rule instead: ranks round a sum differently
    than one process does.
    """
    params = list(module.parameters())
    if not issubclass(cls, EmoOptimizer):
        optimizer = cls([{"params": params[2:]}, {"params": params[:2], "lr": 0.02}], lr=0.05, weight_decay=0.1)  # type: ignore[call-arg]
        emo_hf.attach(optimizer, options.pop("emo_law", "v3.1"), sync=emo_sync)
        return optimizer
    if "denominator" in LAWS[version_of(cls).law].options:
        options["denominator"] = "long"
    lr = lr_for(cls, 0.01)
    groups = [{"params": params[2:]}, {"params": params[:2], "lr": lr / 2}]
    return cls(groups, lr=lr, weight_decay=0.1, emo_sync=emo_sync, **options)


def warm_up(optimizer: Any) -> None:
    """Losses that fall, leap and come to rest, and move nothing."""
    for step in range(WARM_UP):
        loss = 3.0 * 0.8**step + (2.0 if step == 12 else 0.0) + 1.0
        if isinstance(optimizer, EmoOptimizer):
            optimizer.observe(loss)
            optimizer.step()
        else:  # a loss without gradients is a sign of an optimizer that moves within backward
            unwrap(optimizer)._engine.law.feel(loss)


def steps(module: nn.Module, optimizer: Any, first: int, last: int) -> list[float]:
    """σ of steps in which each rank of a parallel module has its share of the same global batches.

    A plain module has the whole. The target leaps now and then, so that the emotion has much to feel.
    """
    scalars = []
    for step in range(first, last):
        inputs = torch.randn(2 * BATCH, 4, generator=torch.Generator().manual_seed(step))
        inputs = inputs.to(next(module.parameters()).dtype)
        share = inputs if type(module) is nn.Sequential else inputs[BATCH * RANK : BATCH * (RANK + 1)]
        level = (2.0, 2.0, 1.9, 3.5, 2.0, 1.4, 2.1, 2.0)[step % 8]
        loss = (module(share) - share.sum(dim=1, keepdim=True) - level).square().mean()
        unwrap(optimizer).observe(0.1 * loss)  # at its full size the laws of v3.0 are always loud
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scalars.append(unwrap(optimizer).emotion.scalar)
    return scalars


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def wholes(module: nn.Module) -> list[torch.Tensor]:
    return [whole(param.detach()) for param in module.parameters()]


def outcome(module: nn.Module, optimizer: Any) -> dict[str, Any]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return {
        "weights": [whole(param.detach()) for param in params],
        "state": [{key: whole(value) for key, value in optimizer.state[param].items()} for param in params],
        "emotion": numbers(unwrap(optimizer).emotion),
        "memory": unwrap(optimizer).emotion_state().get("rule", {}),
        "rates": [group["lr"] for group in optimizer.param_groups],
    }


def save_in(module: nn.Module, optimizer: Any, folder: Path, **options: Any) -> None:
    weights, state = get_state_dict(module, optimizer)
    save({"model": weights, "optimizer": state}, checkpoint_id=str(folder), **options)


def load_in(module: nn.Module, optimizer: Any, folder: Path) -> None:
    weights, state = get_state_dict(module, optimizer)
    target = {"model": weights, "optimizer": state}
    load(target, checkpoint_id=str(folder))
    set_state_dict(module, optimizer, model_state_dict=target["model"], optim_state_dict=target["optimizer"])
