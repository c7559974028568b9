"""FSDP2 on a CPU mesh: every rule, its state in checkpoints, and what a checkpoint crosses over to."""

from __future__ import annotations

import copy
import os
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

from emo_hf import EmoFact, EmoNavi, EmoOptimizer
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

VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "shadow, uphill": {"use_shadow": True, "maximize": True}}


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


def make(cls: type[EmoOptimizer], module: nn.Module, **options: Any) -> EmoOptimizer:
    """An optimizer with two parameter groups; the first has parameters of every kind of shard.

    Laws that throw a coin, whose fall is the rounding of the loss, take a rule instead: ranks round a sum differently
    than one process does.
    """
    if "denominator" in LAWS[version_of(cls).law].options:
        options["denominator"] = "long"
    params = list(module.parameters())
    lr = lr_for(cls, 0.01)
    groups = [{"params": params[2:]}, {"params": params[:2], "lr": lr / 2}]
    return cls(groups, lr=lr, weight_decay=0.1, **options)


def warm_up(optimizer: EmoOptimizer) -> None:
    """Losses that fall, leap and come to rest, and move nothing."""
    for step in range(WARM_UP):
        optimizer.observe(3.0 * 0.8**step + (2.0 if step == 12 else 0.0) + 1.0)
        optimizer.step()


def steps(module: nn.Module, optimizer: EmoOptimizer, first: int, last: int) -> list[float]:
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
        optimizer.observe(0.1 * loss)  # at its full size the laws of v3.0 are always loud
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scalars.append(optimizer.emotion.scalar)
    return scalars


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def outcome(module: nn.Module, optimizer: EmoOptimizer) -> dict[str, Any]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return {
        "weights": [whole(param.detach()) for param in params],
        "state": [{key: whole(value) for key, value in optimizer.state[param].items()} for param in params],
        "emotion": numbers(optimizer.emotion),
        "memory": optimizer.emotion_state()["rule"],
    }


def each_optimizer(folder: Path) -> dict[str, Any]:
    """Runs under FSDP2 and DDP, and the same by one process that sees the whole of the batches."""
    results = {}
    for variant, options in VARIANTS.items():
        for cls in OPTIMIZERS:
            result: dict[str, Any] = {}
            for kind, make_model in MODELS.items():
                module = make_model()
                optimizer = make(cls, module, emo_sync=SYNC[kind], **options)
                scalars = steps(module, optimizer, 0, 12)
                result[kind] = {**outcome(module, optimizer), "scalars": scalars}
            results[f"{cls.__name__} {variant}"] = result
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


def new_state(folder: Path) -> dict[str, Any]:
    """What torch's phantom step, which creates the state, leaves of a new optimizer, and one after three steps."""
    results = {}
    for cls in OPTIMIZERS:
        shards = sharded()
        optimizer = make(cls, shards)
        fresh = looks_of(shards, optimizer)
        get_optimizer_state_dict(shards, optimizer)
        created, state = looks_of(shards, optimizer), outcome(shards, optimizer)["state"]
        steps(shards, optimizer, 0, 3)
        before = looks_of(shards, optimizer)
        get_optimizer_state_dict(shards, optimizer)
        results[cls.__name__] = {
            "fresh": fresh,
            "created": created,
            "state": state,
            "before": before,
            "after": looks_of(shards, optimizer),
        }
    return results


def looks_of(module: nn.Module, optimizer: EmoOptimizer) -> dict[str, Any]:
    """All that can be seen of an optimizer but its state."""
    seen = outcome(module, optimizer)
    del seen["state"]
    return {**seen, "effective_lr": optimizer.effective_lr, "emotion state": copy.deepcopy(optimizer.emotion_state())}


def spoilt(folder: Path) -> dict[str, Any]:
    """Steps of which the second has a NaN in one element of one rank's shard, left out or with the whole step."""
    results = {}
    for nonfinite, optimizers in (("leave_out", OPTIMIZERS), ("skip_step", one_of_each_kind(OPTIMIZERS))):
        for cls in optimizers:
            shards = sharded()
            optimizer = make(cls, shards, nonfinite=nonfinite)
            steps(shards, optimizer, 0, 1)
            before = [whole(param.detach()) for param in shards.parameters()]
            optimizer.register_step_pre_hook(_spoil_one_element)
            steps(shards, optimizer, 1, 2)
            spoilt_step = [whole(param.detach()) for param in shards.parameters()]
            optimizer._optimizer_step_pre_hooks.clear()
            steps(shards, optimizer, 2, 4)
            after = [whole(param.detach()) for param in shards.parameters()]
            count = optimizer.metrics()["emo/nonfinite_gradients"]
            results[f"{cls.__name__} {nonfinite}"] = {
                "before": before,
                "spoilt": spoilt_step,
                "after": after,
                "count": count,
            }
    return results


def _spoil_one_element(optimizer: Any, *_: Any) -> None:
    matrix = next(p for group in optimizer.param_groups for p in group["params"] if p.dim() > 1 and p.grad is not None)
    own = matrix.grad.to_local()
    if RANK == 1:
        own[0, 0] = torch.nan


def low_precision(folder: Path) -> dict[str, Any]:
    """A few steps of bfloat16 parameters, with all that can be kept for them."""
    results = {}
    for cls in OPTIMIZERS:
        shards = sharded(torch.bfloat16)
        before = [whole(param.detach()) for param in shards.parameters()]
        optimizer = make(cls, shards, compensate=True, use_shadow=True)
        steps(shards, optimizer, 0, 3)
        after = [whole(param.detach()) for param in shards.parameters()]
        results[cls.__name__] = {"before": before, "after": after, **outcome(shards, optimizer)}
    return results


def state_dicts(folder: Path) -> dict[str, Any]:
    """A run that goes through a state dict in the middle, sharded or full, and one that does not."""
    results = {}
    for cls in OPTIMIZERS:
        shards = sharded()
        use_shadow = bool(make(cls, shards).rule.new_state(torch.empty(1)))  # some have no state at all without it
        optimizer = make(cls, shards, use_shadow=use_shadow)
        warm_up(optimizer)
        steps(shards, optimizer, 0, STEPS)
        weights = copy.deepcopy(shards.state_dict())
        states = {
            name: copy.deepcopy(get_optimizer_state_dict(shards, optimizer, options=options))
            for name, options in (("sharded", StateDictOptions()), ("full", FULL))
        }  # copies, as torch's share memory
        steps(shards, optimizer, STEPS, STEPS + LATER)
        for name, state in states.items():
            again = sharded()
            again.load_state_dict(weights)
            restored = make(cls, again, use_shadow=use_shadow)
            if name == "full":  # only rank 0 has it
                options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
                set_optimizer_state_dict(again, restored, state if RANK == 0 else {}, options=options)
            else:
                set_optimizer_state_dict(again, restored, state)
            steps(again, restored, STEPS, STEPS + LATER)
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
SYNC = {"fsdp2": "global", "ddp": "global", "alone": "local"}


SAVED = {"fsdp2": OPTIMIZERS, "ddp": one_of_each_kind(OPTIMIZERS), "alone": one_of_each_kind(OPTIMIZERS)}
"""Under what → which optimizers a checkpoint is saved of; one process saves for itself."""


def save_from(kind: str, cls: type[EmoOptimizer], folder: Path) -> dict[str, Any]:
    """A checkpoint after `STEPS` steps, and where the run that wrote it went from there."""
    module = MODELS[kind]()
    optimizer = make(cls, module, emo_sync=SYNC[kind])
    warm_up(optimizer)
    steps(module, optimizer, 0, STEPS)
    weights, state = get_state_dict(module, optimizer)
    if kind != "alone" or RANK == 0:
        save({"model": weights, "optimizer": state}, checkpoint_id=str(folder), no_dist=kind == "alone")
    steps(module, optimizer, STEPS, STEPS + LATER)
    return outcome(module, optimizer)


def resume_in(kind: str, cls: type[EmoOptimizer], folder: Path) -> dict[str, Any]:
    module = MODELS[kind]()
    optimizer = make(cls, module, emo_sync=SYNC[kind])
    weights, state = get_state_dict(module, optimizer)
    target = {"model": weights, "optimizer": state}
    load(target, checkpoint_id=str(folder))
    set_state_dict(module, optimizer, model_state_dict=target["model"], optim_state_dict=target["optimizer"])
    observations = optimizer.emotion.observations
    steps(module, optimizer, STEPS, STEPS + LATER)
    return {"observations at resume": observations, **outcome(module, optimizer)}


def crossing(folder: Path) -> dict[str, Any]:
    """Saved under FSDP2, under DDP and by one process, resumed by two ranks under FSDP2 and DDP."""
    results = {}
    for source, saved in SAVED.items():
        for cls in saved:
            checkpoint = folder.parent / f"{source} {cls.__name__}"
            went_on = save_from(source, cls, checkpoint)
            dist.barrier()  # until the one process has saved
            for target in ("fsdp2", "ddp"):
                resumed = resume_in(target, cls, checkpoint)
                results[f"{cls.__name__} from {source} to {target}"] = {"went on": went_on, "resumed": resumed}
    return results


def averaged(folder: Path) -> dict[str, Any]:
    """Runs with an average of the weights, and one that goes through DCP while the average is shown."""
    options = {"emo_law": "settle", "average_weights": True}
    results = {}
    for kind in ("fsdp2", "alone"):
        module = MODELS[kind]()
        optimizer = make(EmoNavi, module, emo_sync=SYNC[kind], **options)
        steps(module, optimizer, 0, STEPS)
        optimizer.eval()
        results[f"{kind}, average"] = outcome(module, optimizer)
        if kind == "fsdp2":
            weights, state = get_state_dict(module, optimizer)
            save({"model": weights, "optimizer": state}, checkpoint_id=str(folder.parent / "averaged"))
        optimizer.train()
        steps(module, optimizer, STEPS, STEPS + LATER)
        results[f"{kind}, weights"] = outcome(module, optimizer)
        if kind == "fsdp2":
            again = sharded()
            resumed = make(EmoNavi, again, **options)
            weights, state = get_state_dict(again, resumed)
            target = {"model": weights, "optimizer": state}
            load(target, checkpoint_id=str(folder.parent / "averaged"))
            set_state_dict(again, resumed, model_state_dict=target["model"], optim_state_dict=target["optimizer"])
            resumed.train()
            steps(again, resumed, STEPS, STEPS + LATER)
            results["resumed"] = outcome(again, resumed)
    return results


JOBS = {
    "each optimizer": each_optimizer,
    "collectives": collectives,
    "new state": new_state,
    "low precision": low_precision,
    "spoilt": spoilt,
    "state dicts": state_dicts,
    "crossing": crossing,
    "averaged": averaged,
}
