"""What the tests of the Trainer's side share: runs of the tiny classifier, and what has come of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback

from emo_hf.integrations.accelerate import unwrap
from tests import tiny


def trained(folder: Path, *, resume: Path | str | None = None, **changes: Any) -> Trainer:
    """A Trainer that has trained, from the beginning or from a checkpoint."""
    made = tiny.trainer(folder, **changes)
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    return made


def emo_of(trainer: Trainer) -> Any:
    """The emo optimizer of a Trainer, or what is attached to its optimizer."""
    return unwrap(trainer.optimizer)


def lora(**options: Any) -> nn.Module:
    """The tiny classifier with an adapter and a new head."""
    settings = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], **options}
    return get_peft_model(tiny.classifier(), LoraConfig(**settings))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Weights, optimizer state with the emotion and its window, scheduler, and all lines that were logged."""
    # The Trainer's own window of `loss` is not in its checkpoints; a norm is not taken where steps are in backward.
    lines = [
        {key: value for key, value in line.items() if key not in ("loss", "grad_norm")}
        for line in tiny.train_lines(trainer)
    ]
    return {
        "weights": weights(trainer.model),
        "optimizer": emo_of(trainer).state_dict(),
        "scheduler": trainer.lr_scheduler.get_last_lr(),
        "lines": lines,
        "step": trainer.state.global_step,
    }


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package has logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("emo_hf")]


class SaveAt(TrainerCallback):
    """Has a checkpoint written after some steps and no other: writing them is what takes the time here."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_save = state.global_step in self.steps


class FlatFrom(TrainerCallback):
    """Holds the weights still from a step on, so that the loss goes flat for good."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        if state.global_step >= self.step:
            for group in optimizer.param_groups:
                group["lr"] = 0.0


def flat_run(folder: Path, *, flat_from: int = 0, callbacks: Any = (), **changes: Any) -> Trainer:
    """A run of 90 equal steps, over two epochs, whose loss stays where it is from a step on."""
    settings = {
        "data": tiny.examples(4) * 45, "num_train_epochs": 2, "lr_scheduler_type": "constant", "logging_steps": 10,
        "train_sampling_strategy": "sequential", "model": tiny.classifier(dropout=0.0),
    }  # fmt: skip
    return trained(folder, callbacks=[*callbacks, FlatFrom(flat_from)], **(settings | changes))
