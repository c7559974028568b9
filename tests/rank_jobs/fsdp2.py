"""FSDP2 and DDP on a CPU mesh: every rule and an attached emotion, and where their checkpoints go on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import AdamW
from transformers import TrainerCallback

import emo_hf
from emo_hf import EmoNavi, EmoOptimizer
from emo_hf.integrations.accelerate import unwrap
from tests.emo_cases import OPTIMIZERS, held
from tests.rank_jobs import ddp
from tests.rank_jobs.kinds import one_of_each_kind
from tests.rank_jobs.sharded_runs import (
    BROADCAST,
    EVERY,
    FLAT,
    FULL,
    KINDS,
    LATER,
    MODELS,
    RANK,
    STEPS,
    SYNC,
    VARIANTS,
    load_in,
    make,
    outcome,
    save_in,
    sharded,
    steps,
    warm_up,
    wholes,
)


def each_optimizer(folder: Path) -> dict[str, Any]:
    """Runs under FSDP2 and DDP, and the same by one process that sees the whole of the batches."""
    results = {}
    for variant, (options, optimizers) in VARIANTS.items():
        for cls in optimizers:
            result: dict[str, Any] = {}
            for kind, make_model in MODELS.items():
                module = make_model()
                optimizer = make(cls, module, emo_sync=SYNC[kind], **options)
                scalars = steps(module, optimizer, 0, 12)
                result[kind] = {**outcome(module, optimizer), "scalars": scalars}
            results[f"{cls.__name__} {variant}"] = result
    return results


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
        after = looks_of(shards, optimizer)
        results[cls.__name__] = {"looks": ((created, fresh), (after, before)), "state": state}
    return results


def looks_of(module: nn.Module, optimizer: EmoOptimizer) -> dict[str, Any]:
    """All that can be seen of an optimizer but its state."""
    seen = outcome(module, optimizer)
    del seen["state"]
    return {**seen, "effective_lr": optimizer.effective_lr, "emotion state": copy.deepcopy(optimizer.emotion_state())}


def spoilt(folder: Path) -> dict[str, Any]:
    """Steps of which the second has a NaN in one element of one rank's shard, left out or with the whole step."""
    results = {}
    skipping = [(cls, {"nonfinite": "skip_step"}) for cls in one_of_each_kind(OPTIMIZERS)]
    for cls, options in [*((cls, {}) for cls in OPTIMIZERS), *skipping, (AdamW, {"emo_law": "settle"})]:
        shards = sharded()
        optimizer = make(cls, shards, **options)
        steps(shards, optimizer, 0, 1)
        before = wholes(shards)
        hook = optimizer.register_step_pre_hook(_spoil_one_element)
        optimizer._optimizer_step_pre_hooks.move_to_end(hook.id, last=False)
        steps(shards, optimizer, 1, 2)
        hook.remove()
        now = wholes(shards)
        steps(shards, optimizer, 2, 4)
        seen = {"before": before, "spoilt": now, "after": wholes(shards), "decisions": unwrap(optimizer).decisions}
        results[" ".join([cls.__name__, *options.values()])] = {**seen, "metrics": unwrap(optimizer).metrics()}
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
        before = wholes(shards)
        optimizer = make(cls, shards, compensate=True, use_shadow=True)
        steps(shards, optimizer, 0, 3)
        results[cls.__name__] = {"before": before, "after": wholes(shards), **outcome(shards, optimizer)}
    return results


def state_dicts(folder: Path) -> dict[str, Any]:
    """A run that goes through a full or a flat state dict in the middle, and one that does not."""
    results = {}
    for cls in EVERY:
        shards = sharded()
        emo = issubclass(cls, EmoOptimizer)
        has_state = not emo or bool(make(cls, shards).rule.new_state(torch.empty(1)))
        options = {} if has_state else {"use_shadow": True}  # else there is nothing to be carried
        optimizer = make(cls, shards, **options)
        warm_up(optimizer)
        steps(shards, optimizer, 0, STEPS)
        weights = copy.deepcopy(shards.state_dict())
        states = {
            name: copy.deepcopy(get_optimizer_state_dict(shards, optimizer, options=how))
            for name, how in (("full", FULL), ("flat", FLAT))
            if name == "full" or cls in KINDS
        }  # copies, as torch's share memory
        steps(shards, optimizer, STEPS, STEPS + LATER)
        for name, state in states.items():
            again = sharded()
            again.load_state_dict(weights)
            restored = make(cls, again, **options)
            if name == "full":  # only rank 0 has it
                set_optimizer_state_dict(again, restored, state if RANK == 0 else {}, options=BROADCAST)
            else:
                set_optimizer_state_dict(again, restored, state, options=FLAT)
            steps(again, restored, STEPS, STEPS + LATER)
            results[f"{cls.__name__} {name}"] = outcome(again, restored), outcome(shards, optimizer)
    return results


SAVED = {"fsdp2": EVERY, "ddp": KINDS, "alone": KINDS}
"""Under what → which optimizers a checkpoint is saved of; one process saves for itself."""


def save_from(kind: str, cls: type[torch.optim.Optimizer], folder: Path) -> dict[str, Any]:
    """A checkpoint after `STEPS` steps, and where the run that wrote it went from there."""
    module = MODELS[kind]()
    optimizer = make(cls, module, emo_sync=SYNC[kind])
    warm_up(optimizer)
    steps(module, optimizer, 0, STEPS)
    if kind != "alone" or RANK == 0:
        save_in(module, optimizer, folder, no_dist=kind == "alone")
    steps(module, optimizer, STEPS, STEPS + LATER)
    return outcome(module, optimizer)


def resume_in(kind: str, cls: type[torch.optim.Optimizer], folder: Path) -> dict[str, Any]:
    module = MODELS[kind]()
    optimizer = make(cls, module, emo_sync=SYNC[kind])
    load_in(module, optimizer, folder)
    observations = unwrap(optimizer).emotion.observations
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
            for target in ("fsdp2", "ddp") if cls in KINDS else ("fsdp2",):
                results[f"{cls.__name__} from {source} to {target}"] = resume_in(target, cls, checkpoint), went_on
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
            save_in(module, optimizer, folder)
        optimizer.train()
        steps(module, optimizer, STEPS, STEPS + LATER)
        results[f"{kind}, weights"] = outcome(module, optimizer)
    again = sharded()
    resumed = make(EmoNavi, again, **options)
    load_in(again, resumed, folder)
    resumed.train()
    steps(again, resumed, STEPS, STEPS + LATER)
    results["resumed"] = outcome(again, resumed)
    return results


class Sums(TrainerCallback):
    """Notes a digest of the weights after every step."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.sums.append(sum(float(param.double().sum()) for param in held(list(model.parameters()))))


def attached_trainer(folder: Path) -> dict[str, Any]:
    """A Trainer's AdamW with an emotion."""
    sums = Sums()
    callbacks = [emo_hf.EmoCallback(emotion="v3.6"), sums]
    made = ddp.train(folder, more_callbacks=callbacks, optim="adamw_torch", learning_rate=3e-3, num_train_epochs=8)
    return {**made, "sums": sums.sums}


JOBS = {
    "each optimizer": each_optimizer,
    "new state": new_state,
    "low precision": low_precision,
    "spoilt": spoilt,
    "state dicts": state_dicts,
    "crossing": crossing,
    "averaged": averaged,
    "attached trainer": attached_trainer,
}
