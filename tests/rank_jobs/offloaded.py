"""FSDP2 with its state in main memory (`CPUOffloadPolicy`), and with steps in backward, on a CPU mesh."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import emo_hf
from emo_hf import EmoFact, EmoNavi, EmoOptimizer
from tests.rank_jobs import eight_bits
from tests.rank_jobs.fsdp2 import make, model, outcome, steps

WORLD = int(os.environ.get("WORLD_SIZE", 1))
TRIED: dict[str, type[EmoOptimizer]] = {cls.__name__: cls for cls in (EmoNavi, EmoFact)}
OFFLOAD = CPUOffloadPolicy(pin_memory=False)  # pinning needs a device


def sharded(policy: OffloadPolicy) -> nn.Sequential:
    """The layers one by one and the rest, so that gradients come in several times in a backward pass."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    whole, mesh = model(), init_device_mesh("cpu", (WORLD,))
    for layer in whole:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(whole, mesh=mesh, offload_policy=policy)
    return whole


def train(folder: Path, *, cls: type[EmoOptimizer], offloaded: bool, in_backward: bool) -> dict[str, Any]:
    """Six steps, a checkpoint that is taken up by another model, and four more."""
    policy = OFFLOAD if offloaded else OffloadPolicy()
    shards = sharded(policy)
    optimizer = make(cls, shards)
    if in_backward:
        emo_hf.step_in_backward(shards, optimizer)
    steps(shards, optimizer, 0, 6)
    weights, state = (copy.deepcopy(part) for part in get_state_dict(shards, optimizer))
    steps(shards, optimizer, 6, 10)
    again = sharded(policy)
    resumed = make(cls, again)
    if in_backward:
        emo_hf.step_in_backward(again, resumed)
    set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state)
    steps(again, resumed, 6, 10)
    return {"whole": outcome(shards, optimizer), "resumed": outcome(again, resumed)}


def gradients_left(folder: Path) -> dict[str, Any]:
    """How many gradients there are after backward."""
    shards = sharded(OffloadPolicy())
    optimizer = make(EmoNavi, shards)
    emo_hf.step_in_backward(shards, optimizer)
    loss = shards(torch.ones(1, 4)).sum()
    optimizer.observe(loss)
    loss.backward()
    return {"left": sum(param.grad is not None for param in shards.parameters())}


def refused(folder: Path) -> dict[str, Any]:
    """What is said of DDP, of the module inside of it, and of ranks that follow their own losses."""
    inner = model()
    parallel = DistributedDataParallel(inner)
    optimizer = make(EmoNavi, parallel)
    said = {}
    try:
        emo_hf.step_in_backward(parallel, optimizer)
    except ValueError as error:
        said["model"] = str(error)
    emo_hf.step_in_backward(inner, optimizer)
    try:
        steps(parallel, optimizer, 0, 1)
    except RuntimeError as error:
        said["ranks"] = str(error)
    alone = model()
    local = make(EmoNavi, alone, emo_sync="local")
    emo_hf.step_in_backward(alone, local)
    steps(alone, local, 0, 1)
    return {**said, "local": local.emotion.observations}


JOBS = {
    f"{name}{' offloaded' if offloaded else ''}{' in backward' if in_backward else ''}": functools.partial(
        train, cls=cls, offloaded=offloaded, in_backward=in_backward
    )
    for name, cls in TRIED.items()
    for offloaded in (False, True)
    for in_backward in (False, True)
}
JOBS |= {"gradients left": gradients_left, "refused": refused}
JOBS |= eight_bits.JOBS
