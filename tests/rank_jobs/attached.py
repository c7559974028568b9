"""AdamW with an emotion on the ranks of one job: the Trainer, DDP, FSDP2 and its checkpoints."""

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
from transformers import TrainerCallback

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
STEPS, MORE, BATCH = 12, 20, 4


class Notes(tiny.Felt):
    """Notes each loss that is felt, and whether it was on its way to the other ranks when backward was done."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[bool] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.started.append(unwrap(optimizer)._engine.rank_mean._under_way is not None)


class Sums(TrainerCallback):
    """Notes a digest of the weights after every step."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.sums.append(sum(float(param.detach().double().sum()) for param in model.parameters()))


def trainer(folder: Path) -> dict[str, Any]:
    notes, sums = Notes(), Sums()
    made = tiny.trainer(
        folder, optim="adamw_torch", callbacks=[emo_hf.EmoCallback(emotion="v3.6"), notes, sums],
        learning_rate=3e-3, num_train_epochs=8,
    )  # fmt: skip
    made.train()
    return {
        "sums": sums.sums,
        "weights": [param.detach().clone() for param in made.model.parameters()],
        "emotion": asdict(unwrap(made.optimizer).emotion),
        "felt": notes.losses,
        "started": notes.started,
        "logged": [line["loss"] for line in tiny.train_lines(made)],
    }


def model(kind: str) -> nn.Module:
    """Rows that two ranks cannot share evenly, and a layer of which one rank holds nothing."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1))
    if kind == "ddp":
        return DistributedDataParallel(whole)
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (WORLD,))
        for layer in whole:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(whole, mesh=mesh)
    return whole


class Run:
    """A model under a strategy, AdamW, and the emotion attached to it."""

    def __init__(self, kind: str) -> None:
        self.kind, self.model = kind, model(kind)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.handle = emo_hf.attach(self.optimizer, "v3.1", sync="local" if kind == "alone" else "global")
        self.factors: list[float] = []

    def steps(self, first: int, last: int) -> Run:
        """Each rank takes its share of the same global batches; a process alone takes the whole."""
        for step in range(first, last):
            inputs = torch.randn(2 * BATCH, 4, generator=torch.Generator().manual_seed(step))
            share = inputs if self.kind == "alone" else inputs[BATCH * RANK : BATCH * (RANK + 1)]
            loss = (self.model(share) - share.sum(dim=1, keepdim=True) - 2.0).square().mean()
            self.handle.observe(loss)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.factors.append(self.handle.emotion.coefficient)
        return self

    def outcome(self) -> dict[str, Any]:
        state = [entry for param in self.model.parameters() for entry in self.optimizer.state[param].values()]
        return {
            "weights": [_whole(param.detach()) for param in self.model.parameters()],
            "state": [_whole(tensor) for tensor in state],
            "emotion": asdict(self.handle.emotion),
            "factors": self.factors[-(MORE - STEPS) :],
            "rates": [group["lr"] for group in self.optimizer.param_groups],
        }


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def strategies(folder: Path) -> dict[str, Any]:
    return {kind: Run(kind).steps(0, STEPS).outcome() for kind in ("ddp", "fsdp2", "alone")}


def state_dicts(folder: Path) -> dict[str, Any]:
    """A sharded run that goes through a state dict or a checkpoint in the middle, and one that does not."""
    results = {}
    for name in ("sharded", "flat"):
        options = StateDictOptions(flatten_optimizer_state_dict=name == "flat")
        source = Run("fsdp2").steps(0, STEPS)
        state = copy.deepcopy(get_optimizer_state_dict(source.model, source.optimizer, options=options))
        target = Run("fsdp2")
        target.model.load_state_dict(source.model.state_dict())
        set_optimizer_state_dict(target.model, target.optimizer, state, options=options)
        observations = target.handle.emotion.observations
        results[name] = {
            "observations": observations,
            "resumed": target.steps(STEPS, MORE).outcome(),
            "went on": source.steps(STEPS, MORE).outcome(),
        }
    for kind in ("fsdp2", "ddp"):
        source = Run("fsdp2").steps(0, STEPS)
        weights, state = get_state_dict(source.model, source.optimizer)
        save({"model": weights, "optimizer": state}, checkpoint_id=str(folder / kind))
        target = Run(kind)
        weights, state = get_state_dict(target.model, target.optimizer)
        loaded = {"model": weights, "optimizer": state}
        load(loaded, checkpoint_id=str(folder / kind))
        set_state_dict(
            target.model, target.optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
        )
        results[f"checkpoint to {kind}"] = {
            "observations": target.handle.emotion.observations,
            "resumed": target.steps(STEPS, MORE).outcome(),
            "went on": source.steps(STEPS, MORE).outcome(),
        }
    dist.barrier()
    return results


def spoilt(folder: Path) -> dict[str, Any]:
    """One rank's shard of a gradient has a NaN in the third step: all of them have to leave it out."""
    net = model("fsdp2")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    handle = emo_hf.attach(optimizer, "settle")
    moved = []
    for step in range(5):
        before = [_whole(param.detach()) for param in net.parameters()]
        loss = net(torch.full((2, 4), 1.0 + step)).square().mean()
        handle.observe(loss)
        loss.backward()
        shards = [param.grad.to_local() for param in net.parameters()]
        if step == 2 and RANK == 1:
            next(shard for shard in shards if shard.numel()).view(-1)[0] = torch.nan
        optimizer.step()
        optimizer.zero_grad()
        after = [_whole(param.detach()) for param in net.parameters()]
        moved.append(not all(map(torch.equal, before, after)))
    return {"moved": moved, "decisions": handle.decisions, "finite": all(bool(w.isfinite().all()) for w in after)}


JOBS = {"trainer": trainer, "strategies": strategies, "state dicts": state_dicts, "spoilt": spoilt}
