"""FSDP2 on a CPU mesh: every rule, its state in checkpoints, and what a checkpoint crosses over to."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
STEPS = 40  # the self-stop window is full by then
BATCH = 4
OPTIMIZERS = {cls.__name__: cls for cls in (EmoNavi, EmoFact, EmoLynx)}
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def model() -> nn.Sequential:
    """Rows that two ranks cannot share evenly (5, 3), and a layer of which one rank holds nothing (1)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1))


def sharded() -> nn.Module:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    whole = model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in whole:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(whole, mesh=mesh)
    return whole


def make(cls: type[EmoOptimizer], module: nn.Module, **options: Any) -> EmoOptimizer:
    return cls(module.parameters(), lr=0.01, weight_decay=0.1, **options)


def steps(module: nn.Module, optimizer: EmoOptimizer, first: int, last: int) -> None:
    """Each rank of a parallel module takes its share of the same global batches; a plain one takes the whole."""
    for step in range(first, last):
        inputs = torch.randn(2 * BATCH, 4, generator=torch.Generator().manual_seed(step))
        share = inputs if type(module) is nn.Sequential else inputs[BATCH * RANK : BATCH * (RANK + 1)]
        loss = (module(share) - share.sum(dim=1, keepdim=True) - 2.0).square().mean()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def outcome(module: nn.Module, optimizer: EmoOptimizer) -> dict[str, Any]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return {
        "weights": [whole(param.detach()) for param in params],
        "state": [{key: whole(value) for key, value in optimizer.state[param].items()} for param in params],
        "emotion": asdict(optimizer.emotion),
    }


def each_rule(folder: Path) -> dict[str, Any]:
    """Sharded runs, and the same by one process that sees the whole of the batches."""
    results = {}
    for name, options in (("plain", {}), ("shadow", {"use_shadow": True}), ("uphill", {"maximize": True})):
        for cls in OPTIMIZERS.values():
            shards = sharded()
            optimizer = make(cls, shards, **options)
            steps(shards, optimizer, 0, 12)
            alone = model()
            single = make(cls, alone, emo_sync="local", **options)
            steps(alone, single, 0, 12)
            results[f"{cls.__name__} {name}"] = {
                "sharded": outcome(shards, optimizer),
                "alone": outcome(alone, single),
            }
    return results


def collectives(folder: Path) -> dict[str, Any]:
    """How many all-reduces a step of EmoFact takes."""
    shards = sharded()
    optimizer = make(EmoFact, shards)
    steps(shards, optimizer, 0, 1)
    calls = []
    all_reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    try:
        steps(shards, optimizer, 1, 2)
    finally:
        dist.all_reduce = all_reduce
    return {"elements": calls}


def state_dicts(folder: Path) -> dict[str, Any]:
    """A run that goes through a state dict in the middle, sharded or full, and one that does not."""
    results = {}
    for cls in OPTIMIZERS.values():
        for name, options in (("sharded", StateDictOptions()), ("full", FULL)):
            shards = sharded()
            optimizer = make(cls, shards, use_shadow=True)
            steps(shards, optimizer, 0, STEPS)
            state = copy.deepcopy(
                get_optimizer_state_dict(shards, optimizer, options=options)
            )  # torch's shares memory
            again = sharded()
            again.load_state_dict(shards.state_dict())
            restored = make(cls, again, use_shadow=True)
            if name == "full":  # only rank 0 has it
                options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_optimizer_state_dict(again, restored, state if name == "sharded" or RANK == 0 else {}, options=options)
            steps(again, restored, STEPS, STEPS + 10)
            steps(shards, optimizer, STEPS, STEPS + 10)
            results[f"{cls.__name__} {name}"] = {
                "resumed": outcome(again, restored),
                "uninterrupted": outcome(shards, optimizer),
            }
    return results


def distributed() -> nn.Module:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return DistributedDataParallel(model())


MODELS = {"fsdp2": sharded, "ddp": distributed, "alone": model}


def save_from(kind: str, cls: type[EmoOptimizer], folder: Path) -> dict[str, Any]:
    """A checkpoint after `STEPS` steps, and where the run that wrote it went from there."""
    module = MODELS[kind]()
    optimizer = make(cls, module, emo_sync="local" if kind == "alone" else "global")
    steps(module, optimizer, 0, STEPS)
    weights, state = get_state_dict(module, optimizer)
    if kind != "alone" or RANK == 0:
        save({"model": weights, "optimizer": state}, checkpoint_id=str(folder), no_dist=kind == "alone")
    steps(module, optimizer, STEPS, STEPS + 5)
    return outcome(module, optimizer)


def resume_in(kind: str, cls: type[EmoOptimizer], folder: Path) -> dict[str, Any]:
    module = MODELS[kind]()
    optimizer = make(cls, module, emo_sync="local" if kind == "alone" else "global")
    weights, state = get_state_dict(module, optimizer)
    target = {"model": weights, "optimizer": state}
    load(target, checkpoint_id=str(folder))
    set_state_dict(module, optimizer, model_state_dict=target["model"], optim_state_dict=target["optimizer"])
    observations = optimizer.emotion.observations
    steps(module, optimizer, STEPS, STEPS + 5)
    return {"observations at resume": observations, **outcome(module, optimizer)}


def crossing(folder: Path) -> dict[str, Any]:
    """Saved by two ranks under FSDP2 and DDP, resumed by two ranks under the other, and under the same."""
    results = {}
    for source in ("fsdp2", "ddp"):
        for name, cls in OPTIMIZERS.items():
            checkpoint = folder.parent / f"{source} {name}"
            went_on = save_from(source, cls, checkpoint)
            for target in ("fsdp2", "ddp"):
                resumed = resume_in(target, cls, checkpoint)
                results[f"{name} from {source} to {target}"] = {"went on": went_on, "resumed": resumed}
    return results


def from_one_process(folder: Path) -> dict[str, Any]:
    """Saved by rank 0 for itself, as a job of one process saves; resumed by both."""
    results: dict[str, Any] = {}
    for name, cls in OPTIMIZERS.items():
        results[name] = save_from("alone", cls, folder / name)
        dist.barrier()
        for target in ("fsdp2", "ddp"):
            results[f"{name} to {target}"] = resume_in(target, cls, folder / name)
    return results


JOBS = {
    "each rule": each_rule,
    "collectives": collectives,
    "state dicts": state_dicts,
    "crossing": crossing,
    "from one process": from_one_process,
}
