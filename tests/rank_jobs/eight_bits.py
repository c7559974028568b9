"""8 bits on two ranks: DTensors as they are dealt out, FSDP2, and what goes to and from one process."""

from __future__ import annotations

import copy
import functools
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import emo_hf
from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoNeco, EmoOptimizer
from tests.emo_cases import lr_for
from tests.rank_jobs.fsdp2 import FULL, RANK, WORLD, make, outcome, steps, whole

IN_8_BITS: dict[str, Any] = {"state": "8bit", "compensate": "8bit"}
FROM_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
OFFLOAD = CPUOffloadPolicy(pin_memory=False)
STEPS, LATER = 3, 2

SHAPES: dict[str, tuple[int, ...]] = {
    "whole blocks in each row": (33, 256),  # dealt out unevenly: 17 and 16 rows
    "a block end every eighth row": (64, 96),
    "rows to no block end": (63, 96),
    "a vector": (4096,),
    "small": (5, 3),
}
DEALT_IN_8_BITS = ("whole blocks in each row", "a block end every eighth row", "a vector")

RUNS: dict[str, tuple[type[EmoOptimizer], torch.dtype, dict[str, Any]]] = {
    "EmoNavi": (EmoNavi, torch.bfloat16, IN_8_BITS),
    "EmoNavi, averages in floats": (EmoNavi, torch.bfloat16, {"compensate": "8bit"}),
    "EmoNavi by torch": (EmoNavi, torch.bfloat16, {**IN_8_BITS, "native": False}),
    "EmoNavi in float32, uphill": (EmoNavi, torch.float32, {"state": "8bit", "maximize": True}),
    "EmoLynx": (EmoLynx, torch.bfloat16, IN_8_BITS),
}
WITH_SUMS: dict[str, tuple[type[EmoOptimizer], torch.dtype, dict[str, Any]]] = {
    "EmoNeco": (EmoNeco, torch.bfloat16, IN_8_BITS),
    "EmoFact": (EmoFact, torch.bfloat16, {"compensate": "8bit"}),
}
"""Rules with sums over whole parameters, which ranks round differently than one process does."""


@functools.cache
def mesh(*ranks: int) -> DeviceMesh:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return init_device_mesh("cpu", ranks)


DEALS: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "by rows": ((WORLD,), [Shard(0)]),
    "by rows, after copies": ((WORLD, 1), [Replicate(), Shard(0)]),
    "by rows, before copies": ((WORLD, 1), [Shard(0), Replicate()]),
}
COLUMNS = ((WORLD,), [Shard(1)])


def dealt(tensor: Tensor, deal: tuple[tuple[int, ...], list[Any]] | None) -> Tensor:
    return tensor if deal is None else distribute_tensor(tensor, mesh(*deal[0]), deal[1])


def follow(
    name: str, deal: tuple[tuple[int, ...], list[Any]] | None, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> dict[str, Any]:
    """Three steps by gradients that are the same everywhere, however the parameters are dealt out."""
    cls, dtype, options = (RUNS | WITH_SUMS)[name]
    generator = torch.Generator().manual_seed(0)
    first = {of: torch.randn(shape, generator=generator).to(dtype) for of, shape in shapes.items()}
    params = {of: nn.Parameter(dealt(tensor, deal)) for of, tensor in first.items()}
    optimizer = cls(list(params.values()), lr=lr_for(cls, 1e-3), emo_sync="local", **options)
    for step in range(STEPS):
        for param in params.values():
            gradient = torch.randn(param.shape, generator=generator)
            gradient[: len(gradient) // 2] = 0.5  # what is equal is rounded by its place alone
            param.grad = dealt(gradient.to(dtype), deal)
        optimizer.observe(2.0 * 0.9**step)
        optimizer.step()
    return {
        "weights": {of: whole(param.detach()) for of, param in params.items()},
        "state": {of: {k: whole(v) for k, v in optimizer.state[p].items()} for of, p in params.items()},
    }


def same_gradients(folder: Path) -> dict[str, Any]:
    """Each run as one process does it, and on shards."""
    results = {}
    for name in RUNS | WITH_SUMS:
        kinds = DEALS if name == "EmoNavi" else {"by rows": DEALS["by rows"]}
        results[name] = {"alone": follow(name, None), **{kind: follow(name, deal) for kind, deal in kinds.items()}}
    matrices = {of: shape for of, shape in SHAPES.items() if len(shape) > 1}
    deals = {"alone": None, "dealt": COLUMNS}
    by_columns = {kind: follow("EmoNavi", deal, matrices) for kind, deal in deals.items()}
    return {**results, "by columns": by_columns}


def model(*, odd: bool) -> nn.Sequential:
    """Matrices of 1,024 rows of 4 and 9 rows of 1,024 elements, and one of 500 rows of 9 if it is to be `odd`."""
    torch.manual_seed(0)
    width = 500 if odd else 5
    layers = nn.Sequential(
        nn.Linear(4, 1024), nn.Tanh(), nn.Linear(1024, 9), nn.Tanh(), nn.Linear(9, width), nn.Linear(width, 1)
    )
    return layers.to(torch.bfloat16)


def sharded(policy: OffloadPolicy | None = None, *, odd: bool) -> nn.Sequential:
    over, layers = mesh(WORLD), model(odd=odd)
    fully_shard(layers, mesh=over, offload_policy=policy or OffloadPolicy())
    return layers


def trained(module: nn.Module, **options: Any) -> EmoOptimizer:
    """An optimizer after its first steps."""
    optimizer = make(EmoNavi, module, **{**IN_8_BITS, **options})
    steps(module, optimizer, 0, STEPS)
    return optimizer


def on(module: nn.Module, optimizer: EmoOptimizer) -> dict[str, Any]:
    """Where some more steps lead."""
    steps(module, optimizer, STEPS, STEPS + LATER)
    return outcome(module, optimizer)


def fsdp2_in_8_bits(folder: Path) -> dict[str, Any]:
    """Runs on shards, offloaded, in backward, and as one process that sees the whole of the batches."""
    results: dict[str, Any] = {}
    for kind, policy, in_backward in (
        ("plain", None, False),
        ("offloaded", OFFLOAD, False),
        ("in backward", None, True),
    ):
        shards = sharded(policy, odd=True)
        optimizer = make(EmoNavi, shards, **IN_8_BITS)
        if in_backward:
            emo_hf.step_in_backward(shards, optimizer)
        steps(shards, optimizer, 0, STEPS)
        results[kind] = on(shards, optimizer)
    alone = model(odd=True)
    return {**results, "alone": on(alone, trained(alone, emo_sync="local"))}


def told(folder: Path) -> dict[str, Any]:
    """What is said of parameters that keep floats, in two steps of two optimizers."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("emo_hf")
    logger.addHandler(handler)
    for odd in (True, False):
        shards = sharded(odd=odd)
        on(shards, trained(shards))
    logger.removeHandler(handler)
    return {"said": said}


def resumed(folder: Path) -> dict[str, Any]:
    """A run that goes through a state dict, in several ways, and one that does not."""
    shards = sharded(odd=True)
    optimizer = trained(shards)
    weights = copy.deepcopy(shards.state_dict())
    own = copy.deepcopy(get_optimizer_state_dict(shards, optimizer))
    whole_state = full_state(shards, optimizer)
    results = {"went on": on(shards, optimizer)}
    for kind, state, options in (
        ("sharded", own, StateDictOptions()),
        ("full", whole_state, StateDictOptions(full_state_dict=True)),
        ("from rank 0", {} if RANK else whole_state, FROM_RANK_0),
    ):
        again = sharded(odd=True)
        again.load_state_dict(weights)
        restored = make(EmoNavi, again, **IN_8_BITS)
        set_optimizer_state_dict(again, restored, state, options=options)
        results[kind] = on(again, restored)
    return results


def full_state(module: nn.Module, optimizer: EmoOptimizer) -> dict[str, Any]:
    """A full state dict, which torch gives to rank 0 alone, on each rank."""
    state = [copy.deepcopy(get_optimizer_state_dict(module, optimizer, options=FULL))]
    dist.broadcast_object_list(state)
    return state[0]


def save_to(path: Path, module: nn.Module, optimizer: EmoOptimizer, *, no_dist: bool = False) -> None:
    weights, state = get_state_dict(module, optimizer)
    save({"model": weights, "optimizer": state}, checkpoint_id=str(path), no_dist=no_dist)


def resume_from(path: Path, module: nn.Module, **options: Any) -> dict[str, Any]:
    """What a checkpoint gives to a model and an optimizer, and where they go from there."""
    optimizer = make(EmoNavi, module, **{**IN_8_BITS, **options})
    weights, state = get_state_dict(module, optimizer)
    target = {"model": weights, "optimizer": state}
    load(target, checkpoint_id=str(path))
    set_state_dict(module, optimizer, model_state_dict=target["model"], optim_state_dict=target["optimizer"])
    return {"resumed": outcome(module, optimizer), "went on": on(module, optimizer)}


def resharded(folder: Path) -> dict[str, Any]:
    """Checkpoints by torch's DCP from two ranks and from one process, resumed by two ranks; refusals."""
    root = folder.parent
    shards, alone = sharded(odd=False), model(odd=False)
    optimizer, of_alone = trained(shards), trained(alone, emo_sync="local")
    save_to(root / "two ranks", shards, optimizer)
    if RANK == 0:
        save_to(root / "one process", alone, of_alone, no_dist=True)
    dist.barrier()
    saved = {"two ranks": outcome(shards, optimizer), "one process": outcome(alone, of_alone)}
    return {
        "saved": saved,
        "resumed": {kind: resume_from(root / kind, sharded(odd=False)) for kind in saved},
        "went on": on(shards, optimizer),
        "in floats": refusal(root / "two ranks", state=None),
        "compensated": refusal(root / "two ranks", compensate=True),
    }


def refusal(path: Path, **options: Any) -> str:
    """What is said of a checkpoint that torch has read into tensors of another kind."""
    try:
        resume_from(path, sharded(odd=False), **options)
    except ValueError as error:
        return str(error)
    return "nothing"


WAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "floats": ({"state": None, "compensate": False}, ("8 bits",)),
    "8 bits": (IN_8_BITS, ("floats", "compensated")),
    "compensated": ({"state": "8bit", "compensate": True}, ("8 bits",)),
}
"""How state is kept → by what options, and to what others it crosses."""


def crossing(folder: Path) -> dict[str, Any]:
    """Sharded state dicts of one way of keeping the state, loaded into optimizers of another."""
    results = {}
    for there, (options, _) in WAYS.items():
        shards = sharded(odd=True)
        optimizer = trained(shards, **options)
        state = get_optimizer_state_dict(shards, optimizer)
        saved = outcome(shards, optimizer)
        for here in WAYS[there][1]:
            loaded = make(EmoNavi, shards, **WAYS[here][0])
            set_optimizer_state_dict(shards, loaded, copy.deepcopy(state))
            kinds = {type(v) for p in shards.parameters() for v in loaded.state[p].values()}
            results[f"{there} to {here}"] = {
                "saved": saved,
                "loaded": outcome(shards, loaded),
                "sharded": kinds == {DTensor},
                "trains": trains(shards, loaded),
            }
    return results


def trains(module: nn.Module, optimizer: EmoOptimizer) -> bool:
    """Whether some more steps move something, and leave it finite."""
    before = [whole(param.detach()).clone() for param in module.parameters()]
    after = on(module, optimizer)["weights"]
    moved = any(
        not torch.equal(*pair) for pair in zip(before, [whole(p.detach()) for p in module.parameters()], strict=True)
    )
    return moved and all(bool(weight.isfinite().all()) for weight in after)


def to_and_from_one_process(folder: Path) -> dict[str, Any]:
    """Full state dicts between shards, which keep floats for the odd matrix, and one process, which keeps 8 bits."""
    shards, alone = sharded(odd=True), model(odd=True)
    optimizer, of_alone = trained(shards), trained(alone, emo_sync="local")
    full = StateDictOptions(full_state_dict=True)
    of_shards, state = full_state(shards, optimizer), get_optimizer_state_dict(alone, of_alone)
    to_alone, to_shards = make(EmoNavi, alone, emo_sync="local", **IN_8_BITS), make(EmoNavi, shards, **IN_8_BITS)
    saved = {"shards": outcome(shards, optimizer), "alone": outcome(alone, of_alone)}
    set_optimizer_state_dict(alone, to_alone, of_shards, options=full)
    set_optimizer_state_dict(shards, to_shards, copy.deepcopy(state), options=full)
    said = ""
    try:  # which torch would copy into tensors of the other kind
        refusing = make(EmoNavi, shards, **IN_8_BITS)
        set_optimizer_state_dict(shards, refusing, {} if RANK else state, options=FROM_RANK_0)
    except ValueError as error:
        said = str(error)
    return {**saved, "to alone": outcome(alone, to_alone), "to shards": outcome(shards, to_shards), "said": said}


JOBS = {
    "same gradients": same_gradients,
    "fsdp2 in 8 bits": fsdp2_in_8_bits,
    "told": told,
    "resumed": resumed,
    "resharded": resharded,
    "8 bits crossing": crossing,
    "to and from one process": to_and_from_one_process,
}
