"""Autonomous ranks in the Trainer: what they evaluate and save, and what is left of it when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback

from emo_hf import LocalSGDCallback, WeightExchangeCallback
from tests import tiny
from tests.rank_jobs.ddp import train

AUTONOMOUS: dict[str, Any] = {"optim_args": "emo_sync=local", "average_tokens_across_devices": False}
EPOCH = 16
"""Steps in an epoch of 128 examples; not a multiple of 5."""


def digest(tensors: Any) -> float:
    return sum(float(tensor.detach().double().sum()) for tensor in tensors)


class Drift(TrainerCallback):
    """Notes digests of the weights after every step and at every evaluation, and of the gradients before each step."""

    def __init__(self) -> None:
        self.after_steps: list[float] = []
        self.evaluated: dict[int, float] = {}
        self.gradients: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.gradients.append(digest(param.grad for param in model.parameters() if param.grad is not None))

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.after_steps.append(digest(model.parameters()))

    def on_prediction_step(self, args, state, control, model=None, **kwargs) -> None:
        self.evaluated.setdefault(state.global_step, digest(model.parameters()))


class Asking(TrainerCallback):
    """Asks for an evaluation after step 3, and then for a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_evaluate = control.should_evaluate or state.global_step == 3

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        control.should_save = control.should_save or state.global_step == 3


def every_few_steps(folder: Path) -> dict[str, Any]:
    """Weights averaged every 5 steps and at the end."""
    drift = Drift()
    result = train(folder, count=128, num_train_epochs=1, **AUTONOMOUS, more_callbacks=[LocalSGDCallback(5), drift])
    return {**result, "after steps": drift.after_steps, "gradients": drift.gradients}


def by_the_epoch(folder: Path) -> dict[str, Any]:
    """Evaluated and saved after every epoch, and after step 3 since a callback asks for it."""
    drift = Drift()
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(128), eval_dataset=tiny.examples(8),
        callbacks=[LocalSGDCallback(5), drift, Asking()], num_train_epochs=2, eval_strategy="epoch",
        save_strategy="epoch", save_only_model=True, **AUTONOMOUS,
    )  # fmt: skip
    trainer.train()
    torch.distributed.barrier()  # until rank 0 has written
    saved = {
        step: digest(load_file(folder / f"checkpoint-{step}" / "model.safetensors").values())
        for step in (3, EPOCH, 2 * EPOCH)
    }
    return {"evaluated": drift.evaluated, "saved": saved, "after steps": drift.after_steps}


def broken_off(folder: Path) -> dict[str, Any]:
    """Training raises in its third step, is begun again, and the model is used by hand after either."""
    breaks = [False, False, True]

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        if breaks and breaks.pop(0):
            raise RuntimeError("broken off")
        return cross_entropy(outputs.logits, labels)

    drift = Drift()
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(64), compute_loss_func=loss,
        callbacks=[LocalSGDCallback(5), drift], **AUTONOMOUS,
    )  # fmt: skip
    results: dict[str, Any] = {}
    try:
        trainer.train()
    except RuntimeError as error:
        results["said"] = str(error)
    results["by hand"] = by_hand(trainer)
    drift.after_steps.clear()
    trainer.train()
    return {**results, "by hand at the end": by_hand(trainer), "after steps": drift.after_steps}


def by_hand(trainer: Trainer) -> float:
    """A digest of the gradients of a backward pass outside of `train()`, each rank with a batch of its own."""
    model: nn.Module = trainer.model_wrapped
    model.zero_grad()
    rank = torch.distributed.get_rank()
    model(input_ids=torch.arange(8).view(1, 8) + 8 * rank, labels=torch.tensor([rank])).loss.backward()
    return digest(param.grad for param in model.parameters() if param.grad is not None)


class Spoils(TrainerCallback):
    """Makes one rank's weights no numbers after step 2."""

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 2 and torch.distributed.get_rank() == 1:
            next(model.parameters()).data.fill_(torch.nan)


def spoilt_rank(folder: Path) -> dict[str, Any]:
    """One rank diverges before an average."""
    drift = Drift()
    result = train(
        folder, count=64, num_train_epochs=1, **AUTONOMOUS, more_callbacks=[Spoils(), LocalSGDCallback(4), drift]
    )
    return {**result, "after steps": drift.after_steps}


def refused(folder: Path) -> dict[str, str]:
    local_sgd = LocalSGDCallback(5)
    exchange = WeightExchangeCallback(folder / "exchange", node="a", every=5)
    stopping = {**AUTONOMOUS, "optim_args": "emo_sync=local,self_stop=stop"}
    return {
        "one emotion": refusal(folder, local_sgd, average_tokens_across_devices=False),
        "tokens averaged": refusal(folder, local_sgd, optim_args="emo_sync=local"),
        "exchange": refusal(folder, exchange),
        "self-stop": refusal(folder, local_sgd, **stopping),
    }


def refusal(folder: Path, callback: TrainerCallback, **changes: Any) -> str:
    try:
        train(folder, more_callbacks=[callback], **changes)
    except ValueError as error:
        return str(error)
    return "nothing"


JOBS = {
    "every few steps": every_few_steps,
    "by the epoch": by_the_epoch,
    "broken off": broken_off,
    "spoilt rank": spoilt_rank,
    "refused": refused,
}
