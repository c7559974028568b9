"""Autonomous ranks in the Trainer: one training in which everything happens, and the settings that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from emo_hf import LocalSGDCallback, WeightExchangeCallback
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.rank_jobs.ddp import train
from tests.ranks import numbers

AUTONOMOUS: dict[str, Any] = {"optim_args": "emo_sync=local", "average_tokens_across_devices": False}
EVERY, EPOCH, ASKED, SPOILT = 5, 16, 3, 22
"""Steps between averages and in an epoch of 128 examples; those when a callback asks, and when a rank is spoilt."""


def digest(tensors: Any) -> float:
    return sum(float(tensor.detach().double().sum()) for tensor in tensors)


class Drift(TrainerCallback):
    """Notes digests of the weights before every step and at every evaluation, and of the gradients; spoils a rank."""

    def __init__(self) -> None:
        self.before_steps: list[float] = []
        self.evaluated: dict[int, float] = {}
        self.gradients: list[float] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.before_steps.append(digest(model.parameters()))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.gradients.append(digest(param.grad for param in model.parameters() if param.grad is not None))

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == SPOILT and torch.distributed.get_rank() == 1:
            next(model.parameters()).data.fill_(torch.nan)

    def on_prediction_step(self, args, state, control, model=None, **kwargs) -> None:
        self.evaluated.setdefault(state.global_step, digest(model.parameters()))


class Asking(TrainerCallback):
    """Asks for an evaluation after a step, and then for a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_evaluate = control.should_evaluate or state.global_step == ASKED

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        control.should_save = control.should_save or state.global_step == ASKED


def apart(folder: Path) -> dict[str, Any]:
    """Two epochs, evaluated and saved after each; then a backward pass by hand, each rank with a batch of its own."""
    drift = Drift()
    trainer = tiny.trainer(
        folder, model=tiny.classifier(dropout=0.0), data=tiny.examples(128), eval_dataset=tiny.examples(8),
        callbacks=[LocalSGDCallback(EVERY), drift, Asking()], num_train_epochs=2, eval_strategy="epoch",
        save_strategy="epoch", save_only_model=True, **AUTONOMOUS,
    )  # fmt: skip
    trainer.train()
    torch.distributed.barrier()  # until rank 0 has written
    saved = {
        step: digest(load_file(folder / f"checkpoint-{step}" / "model.safetensors").values())
        for step in (ASKED, EPOCH, 2 * EPOCH)
    }
    model, rank = trainer.model_wrapped, torch.distributed.get_rank()
    weights = [param.detach().clone() for param in model.parameters()]
    model.zero_grad()
    model(input_ids=torch.arange(8).view(1, 8) + 8 * rank, labels=torch.tensor([rank])).loss.backward()
    by_hand = digest(param.grad for param in model.parameters() if param.grad is not None)
    emotion = numbers(unwrap(trainer.optimizer).emotion)
    return {**vars(drift), "saved": saved, "weights": weights, "emotion": emotion, "by hand": by_hand}


def refused(folder: Path) -> dict[str, str]:
    local_sgd = LocalSGDCallback(EVERY)
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


JOBS = {"apart": apart, "refused": refused}
