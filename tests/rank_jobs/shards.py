"""Shards on two ranks: FSDP2 with state in main memory and steps in backward, and 8 bits in whatever way dealt out."""

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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import emo_hf
from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoNeco, EmoOptimizer
from tests.emo_cases import lr_for
from tests.rank_jobs.sharded_runs import BROADCAST, FULL, RANK, WORLD, load_in, make, outcome, save_in, steps, whole
from tests.rank_jobs.sharded_runs import model as small_model

OFFLOAD = CPUOffloadPolicy(pin_memory=False)  # pinning needs a device
IN_8_BITS: dict[str, Any] = {"state": "8bit", "compensate": "8bit"}
STEPS, LATER = 3, 2


@functools.cache
def mesh(*ranks: int) -> DeviceMesh:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return init_device_mesh("cpu", ranks)


def in_layers(policy: OffloadPolicy | None = None) -> nn.Sequential:
    """The layers one by one and the rest, so that gradients come in several times in a backward pass."""
    layers = small_model()
    for layer in [*(layer for layer in layers if any(True for _ in layer.parameters())), layers]:
        fully_shard(layer, mesh=mesh(WORLD), offload_policy=policy or OffloadPolicy())
    return layers


def begun(cls: type[EmoOptimizer], kind: str) -> tuple[nn.Module, EmoOptimizer]:
    shards = in_layers(OFFLOAD if "offloaded" in kind else None)
    return shards, make(cls, shards, step_in_backward="in backward" in kind)


def offloaded(folder: Path) -> dict[str, Any]:
    """Six steps, a checkpoint that is taken up by another model, and four more; offloaded, in backward, or neither."""
    results: dict[str, Any] = {"EmoNavi": {}, "EmoFact": {}}
    for cls in (EmoNavi, EmoFact):
        for kind in ("plain", "in backward", "offloaded in backward"):
            shards, optimizer = begun(cls, kind)
            steps(shards, optimizer, 0, 6)
            weights, state = (copy.deepcopy(part) for part in get_state_dict(shards, optimizer))
            steps(shards, optimizer, 6, 10)
            again, resumed = begun(cls, kind)
            set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state)
            steps(again, resumed, 6, 10)
            results[cls.__name__][kind] = {"whole": outcome(shards, optimizer), "resumed": outcome(again, resumed)}
    return results


def refused(folder: Path) -> dict[str, Any]:
    """What is said of DDP, of the module inside of it, and of ranks that follow their own losses."""
    inner = small_model()
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
    alone = small_model()
    local = make(EmoNavi, alone, emo_sync="local")
    emo_hf.step_in_backward(alone, local)
    steps(alone, local, 0, 1)
    return {**said, "local": local.emotion.observations}


SHAPES: dict[str, tuple[int, ...]] = {
    "whole blocks in each row": (33, 256),  # dealt out unevenly: 17 and 16 rows
    "a block end every eighth row": (64, 96),
    "rows to no block end": (63, 96),
    "a vector": (4096,),
    "small": (5, 3),
}
DEALT_IN_8_BITS = ("whole blocks in each row", "a block end every eighth row", "a vector")

Run = tuple[type[EmoOptimizer], torch.dtype, dict[str, Any]]
RUNS: dict[str, Run] = {
    "EmoNavi": (EmoNavi, torch.bfloat16, IN_8_BITS),
    "EmoNavi, averages in floats": (EmoNavi, torch.bfloat16, {"compensate": "8bit"}),
    "EmoNavi by torch": (EmoNavi, torch.bfloat16, {**IN_8_BITS, "native": False}),
    "EmoNavi in float32, uphill": (EmoNavi, torch.float32, {"state": "8bit", "maximize": True}),
    "EmoLynx": (EmoLynx, torch.bfloat16, IN_8_BITS),
}
WITH_SUMS: dict[str, Run] = {
    "EmoNeco": (EmoNeco, torch.bfloat16, IN_8_BITS),
    "EmoFact": (EmoFact, torch.bfloat16, {"compensate": "8bit"}),
}
"""Rules with sums over whole parameters, which ranks round differently than one process does."""

Deal = tuple[tuple[int, ...], list[Any]]
DEALS: dict[str, Deal] = {
    "by rows": ((WORLD,), [Shard(0)]),
    "by rows, after copies": ((WORLD, 1), [Replicate(), Shard(0)]),
    "by rows, before copies": ((WORLD, 1), [Shard(0), Replicate()]),
}


def follow(name: str, deal: Deal | None, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    """Three steps by gradients that are the same everywhere, however the parameters are dealt out."""

    def dealt(tensor: Tensor) -> Tensor:
        return tensor if deal is None else distribute_tensor(tensor, mesh(*deal[0]), deal[1])

    cls, dtype, options = (RUNS | WITH_SUMS)[name]
    generator = torch.Generator().manual_seed(0)
    first = {of: torch.randn(shape, generator=generator).to(dtype) for of, shape in shapes.items()}
    params = {of: nn.Parameter(dealt(tensor)) for of, tensor in first.items()}
    optimizer = cls(list(params.values()), lr=lr_for(cls, 1e-3), emo_sync="local", **options)
    for step in range(STEPS):
        for param in params.values():
            gradient = torch.randn(param.shape, generator=generator)
            gradient[: len(gradient) // 2] = 0.5  # what is equal is rounded by its place alone
            param.grad = dealt(gradient.to(dtype))
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
    by_columns: dict[str, Deal | None] = {"alone": None, "dealt": ((WORLD,), [Shard(1)])}
    return {**results, "by columns": {kind: follow("EmoNavi", deal, matrices) for kind, deal in by_columns.items()}}


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


def in_8_bits(folder: Path) -> dict[str, Any]:
    """Runs on shards, offloaded, in backward, and by one process that sees the whole of the batches; what is said."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("emo_hf")
    logger.addHandler(handler)
    shards, even = sharded(odd=True), sharded(odd=False)
    results: dict[str, Any] = {"plain": on(shards, trained(shards))}
    on(even, trained(even))
    logger.removeHandler(handler)
    shards = sharded(OFFLOAD, odd=True)
    results["offloaded"] = on(shards, trained(shards))
    shards = sharded(odd=True)
    optimizer = make(EmoNavi, shards, **IN_8_BITS)
    emo_hf.step_in_backward(shards, optimizer)
    steps(shards, optimizer, 0, STEPS)
    results["in backward"] = on(shards, optimizer)
    alone = model(odd=True)
    return {**results, "alone": on(alone, trained(alone, emo_sync="local")), "said": said}


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
        ("from rank 0", {} if RANK else whole_state, BROADCAST),
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


def resume_from(path: Path, module: nn.Module, **options: Any) -> dict[str, Any]:
    """What a checkpoint gives to a model and an optimizer, and where they go from there; or what is said of it."""
    optimizer = make(EmoNavi, module, **{**IN_8_BITS, **options})
    try:
        load_in(module, optimizer, path)
    except ValueError as error:
        return {"said": str(error)}
    return {"resumed": outcome(module, optimizer), "went on": on(module, optimizer)}


def resharded(folder: Path) -> dict[str, Any]:
    """Checkpoints by torch's DCP from two ranks and from one process, resumed by two ranks; refusals."""
    root = folder.parent
    shards, alone = sharded(odd=False), model(odd=False)
    optimizer, of_alone = trained(shards), trained(alone, emo_sync="local")
    save_in(shards, optimizer, root / "two ranks")
    if RANK == 0:
        save_in(alone, of_alone, root / "one process", no_dist=True)
    dist.barrier()
    saved = {"two ranks": outcome(shards, optimizer), "one process": outcome(alone, of_alone)}
    return {
        "saved": saved,
        "resumed": {kind: resume_from(root / kind, sharded(odd=False)) for kind in saved},
        "went on": on(shards, optimizer),
        "refused": [
            resume_from(root / "two ranks", sharded(odd=False), **other)
            for other in ({"state": None}, {"compensate": True})
        ],
    }


WAYS: dict[str, dict[str, Any]] = {"floats": {"state": None, "compensate": False}, "8 bits": IN_8_BITS}
"""How state is kept, and by what options."""


def crossing(folder: Path) -> dict[str, Any]:
    """Sharded state dicts of one way of keeping the state, loaded into optimizers of another."""
    results = {}
    for there, here in (("floats", "8 bits"), ("8 bits", "floats")):
        shards = sharded(odd=True)
        optimizer = trained(shards, **WAYS[there])
        state, saved = get_optimizer_state_dict(shards, optimizer), outcome(shards, optimizer)
        loaded = make(EmoNavi, shards, **WAYS[here])
        set_optimizer_state_dict(shards, loaded, copy.deepcopy(state))
        kinds = {type(v) for p in shards.parameters() for v in loaded.state[p].values()}
        as_loaded, after = outcome(shards, loaded), on(shards, loaded)["weights"]
        results[f"{there} to {here}"] = {
            "saved": saved,
            "loaded": as_loaded,
            "sharded": kinds == {DTensor},
            "trains": not all(map(torch.equal, as_loaded["weights"], after)),
        }
    return results


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
        set_optimizer_state_dict(shards, refusing, {} if RANK else state, options=BROADCAST)
    except ValueError as error:
        said = str(error)
    return {**saved, "to alone": outcome(alone, to_alone), "to shards": outcome(shards, to_shards), "said": said}


JOBS = {
    job.__name__: job
    for job in (
        offloaded, refused, same_gradients, in_8_bits, resumed, resharded, crossing,
        to_and_from_one_process,
    )
}  # fmt: skip
