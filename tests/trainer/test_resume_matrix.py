"""A Trainer run that was interrupted at any step and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.emo_cases import assert_identical

DEFAULTS = [("emonavi", "v3.1"), ("emofact", "v3.1"), ("emolynx", "v3.1")]
GENERATIONS = [(name, version) for name, cls in emo_hf.FAMILY.items() for version in cls.versions]
OTHERS = [generation for generation in GENERATIONS if generation not in DEFAULTS]
MATRIX = [
    *itertools.product(DEFAULTS, [False, True], [1, 3], ["full", "LoRA"]),
    *itertools.product(OTHERS, [True], [3], ["LoRA"]),
]


@pytest.fixture(autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


class SaveAt(TrainerCallback):
    """Has a checkpoint written after some steps and no other: writing them is what takes the time here."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step in self.steps


def lively_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss whose changes are large beside it: ten steps are enough to move the coefficient."""
    return 5.0 * torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch - 4.4


def make_trainer(folder: Path, model: str, **changes: Any) -> Trainer:
    trained = tiny.classifier()
    if model == "LoRA":
        trained = get_peft_model(
            trained, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.1)
        )
    settings = {
        "compute_loss_func": lively_loss,
        "learning_rate": 5e-3,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "seed": 3,
    }
    return tiny.trainer(folder, model=trained, data=tiny.examples(18), **settings | changes)


def everything(trainer: Trainer) -> dict[str, Any]:
    """Weights, optimizer state with the emotion and its window, scheduler, and all lines that were logged."""
    # The Trainer's own window of `loss` is not in its checkpoints: after a resume it begins anew.
    lines = [{key: value for key, value in line.items() if key != "loss"} for line in tiny.train_lines(trainer)]
    return {
        "weights": dict(trainer.model.state_dict()),
        "optimizer": unwrap(trainer.optimizer).state_dict(),
        "scheduler": trainer.lr_scheduler.get_last_lr(),
        "lines": lines,
        "step": trainer.state.global_step,
    }


@pytest.mark.parametrize(
    ("generation", "shadow", "accumulation", "model"),
    MATRIX,
    ids=[f"{'-'.join(g)}-{'shadow' if s else 'plain'}-accumulation{a}-{m}" for g, s, a, m in MATRIX],
)
def test_a_run_interrupted_anywhere_ends_as_the_uninterrupted_one(
    generation: tuple[str, str], shadow: bool, accumulation: int, model: str, tmp_path: Path
) -> None:
    name, version = generation
    scaled = emo_hf.FAMILY[name].versions[version].lr_is_a_scale
    changes = {
        "optim": name, "optim_args": f"version={version},use_shadow={shadow}",
        "gradient_accumulation_steps": accumulation, "num_train_epochs": 4 if accumulation == 3 else 2,
        "learning_rate": 10.0 if scaled else 2e-2 if name == "emolynx" else 5e-3,
    }  # fmt: skip
    last = 10 if accumulation == 1 else 8
    place = MATRIX.index((generation, shadow, accumulation, model))
    interruptions = {1 + place % (last - 1), last - 1}  # over the matrix, at every step
    trainer = make_trainer(tmp_path, model, **changes, save_strategy="no")
    trainer.add_callback(SaveAt(interruptions))
    trainer.train()
    whole = everything(trainer)
    assert whole["step"] == last
    ranges = [(line["emo/coefficient_min"], line["emo/coefficient_max"]) for line in whole["lines"]]
    lively = any(extremes != (1.0, 1.0) for extremes in ranges)
    assert lively or model == "LoRA", "the emotion should have something to say, though adapters start at nothing"
    for step in interruptions:
        resumed = make_trainer(tmp_path, model, **changes, save_strategy="no")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_identical(everything(resumed), whole)


@pytest.mark.parametrize("law", ["v3.1", "robust"])
def test_the_self_stop_window_and_the_law_go_on_across_the_interruption(law: str, tmp_path: Path) -> None:
    changes = {
        "num_train_epochs": 10, "save_steps": 25, "learning_rate": 1e-5, "logging_steps": 7,
        "optim_args": f"emo_law={law},self_stop=save,self_stop_patience=1,self_stop_min_steps=2",
    }  # fmt: skip
    trainer = make_trainer(tmp_path, "full", **changes)
    trainer.train()
    whole = everything(trainer)
    assert unwrap(trainer.optimizer).emotion.should_stop
    assert len(whole["optimizer"]["param_groups"][0]["emotion"]["window"]) == 32
    resumed = make_trainer(tmp_path, "full", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-25"))
    assert_identical(everything(resumed), whole)


def without_optimizer(folder: Path, **changes: Any) -> None:
    make_trainer(folder, "full", **changes).train()
    for file in folder.glob("checkpoint-*/optimizer.pt"):
        file.unlink()


def only_the_model(folder: Path, **changes: Any) -> None:
    make_trainer(folder, "full", **changes, save_only_model=True).train()


@pytest.mark.parametrize("prepare", [without_optimizer, only_the_model])
def test_a_run_resumed_from_the_weights_alone_starts_its_emotion_afresh(prepare: Any, tmp_path: Path) -> None:
    prepare(tmp_path, num_train_epochs=1)
    resumed = make_trainer(tmp_path, "full", num_train_epochs=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 10
    emotion = unwrap(resumed.optimizer).emotion
    assert (emotion.observations, emotion.skipped) == (6, 0)
    first = next(line for line in tiny.train_lines(resumed) if line["step"] == 6)
    assert first["emo/observations"] == 2
