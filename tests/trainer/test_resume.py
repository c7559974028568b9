"""Every optimizer and generation by its name: it trains, logs, and an interrupted run goes on to the last bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.emo_cases import assert_identical

GENERATIONS = [(name, version) for name, cls in emo_hf.FAMILY.items() for version in cls.versions]
PAIRS = [(False, 1, "full"), (True, 3, "full"), (True, 1, "LoRA"), (False, 3, "LoRA")]  # shadow, accumulation, model
CASES = [
    *((generation, PAIRS[place % 4]) for place, generation in enumerate(GENERATIONS)),
    *((("emonavi", "v3.1"), pair) for pair in PAIRS[1:]),
]


class SaveAt(TrainerCallback):
    """Has a checkpoint written after some steps and no other: writing them is what takes the time here."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step in self.steps


def lively_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss whose changes are large beside it: ten steps are enough to move the coefficient."""
    return 5.0 * torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch - 4.4


def make_trainer(folder: Path, model: str = "full", **changes: Any) -> Trainer:
    trained = tiny.classifier()
    if model == "LoRA":
        trained = get_peft_model(
            trained, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.1)
        )
    settings = {"compute_loss_func": lively_loss, "learning_rate": 5e-3, "logging_steps": 2, "seed": 3}
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
    ("generation", "pair"), CASES, ids=[f"{'-'.join(generation)}-{pair}" for generation, pair in CASES]
)
def test_it_trains_by_name_logs_and_goes_on_as_if_it_had_not_been_interrupted(
    generation: tuple[str, str], pair: tuple[bool, int, str], tmp_path: Path
) -> None:
    (name, version), (shadow, accumulation, model) = generation, pair
    scaled = emo_hf.FAMILY[name].versions[version].lr_is_a_scale
    changes = {
        "optim": name, "optim_args": f"version={version},use_shadow={shadow}",
        "gradient_accumulation_steps": accumulation, "num_train_epochs": 4 if accumulation == 3 else 2,
        "learning_rate": 10.0 if scaled else 2e-2 if name == "emolynx" else 5e-3,
    }  # fmt: skip
    last = 10 if accumulation == 1 else 8
    interruptions = {1 + CASES.index((generation, pair)) % (last - 1), last - 1}  # over the cases, at every step
    trainer = make_trainer(tmp_path, model, **changes, callbacks=[SaveAt(interruptions)])
    trainer.train()
    whole, optimizer = everything(trainer), unwrap(trainer.optimizer)
    assert (type(optimizer), optimizer.version, whole["step"]) == (emo_hf.FAMILY[name], version, last)
    assert (optimizer.emotion.law, optimizer.emotion.observations) == (version, last)
    for line in whole["lines"]:
        assert all(math.isfinite(value) for key, value in line.items() if key.startswith("emo/"))
        rate = line["learning_rate"] * line["emo/coefficient"]
        assert line["emo/effective_lr"] == pytest.approx(rate if version != "v3.9" else max(rate, 1e-8), rel=1e-9)
    ranges = [(line["emo/coefficient_min"], line["emo/coefficient_max"]) for line in whole["lines"]]
    lively = any(extremes != (1.0, 1.0) for extremes in ranges)
    assert lively or model == "LoRA", "the emotion should have something to say, though adapters start at nothing"
    for step in interruptions:
        resumed = make_trainer(tmp_path, model, **changes)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_identical(everything(resumed), whole)


@pytest.mark.parametrize("law", ["v3.1", "robust"])
def test_the_self_stop_window_and_the_law_go_on_across_the_interruption(law: str, tmp_path: Path) -> None:
    changes = {
        "num_train_epochs": 10, "save_strategy": "steps", "save_steps": 25, "learning_rate": 1e-5, "logging_steps": 7,
        "optim_args": f"emo_law={law},self_stop=save,self_stop_patience=1,self_stop_min_steps=2",
    }  # fmt: skip
    trainer = make_trainer(tmp_path, **changes)
    trainer.train()
    whole = everything(trainer)
    assert unwrap(trainer.optimizer).emotion.should_stop
    resumed = make_trainer(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-25"))
    assert_identical(everything(resumed), whole)


@pytest.mark.parametrize("only_model", [False, True])
def test_a_run_resumed_from_the_weights_alone_starts_its_emotion_afresh(only_model: bool, tmp_path: Path) -> None:
    make_trainer(tmp_path, callbacks=[SaveAt({4})], save_only_model=only_model).train()
    if not only_model:
        (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    resumed = make_trainer(tmp_path, num_train_epochs=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    emotion = unwrap(resumed.optimizer).emotion
    assert (resumed.state.global_step, emotion.observations, emotion.skipped) == (10, 6, 0)
    first = next(line for line in tiny.train_lines(resumed) if line["step"] == 6)
    assert first["emo/observations"] == 2


def test_every_name_parses_on_the_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser(TrainingArguments)
    for name in emo_hf.FAMILY:
        (parsed,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--optim", name])
        assert parsed.optim.value == name


@pytest.mark.parametrize("name", emo_hf.FAMILY)
def test_a_checkpoint_of_one_generation_is_not_taken_for_another(name: str) -> None:
    model = tiny.classifier()
    state = emo_hf.create_optimizer(name, model).state_dict()
    for version in list(emo_hf.FAMILY[name].versions)[1:]:
        with pytest.raises(ValueError, match="make the optimizer with version="):
            emo_hf.create_optimizer(name, model, version=version).load_state_dict(state)
