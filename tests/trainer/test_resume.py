"""Every kind of optimizer by its name: it trains, logs, and an interrupted run goes on to the last bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

import emo_hf
from tests import tiny
from tests.emo_cases import OPTIMIZERS, assert_identical, version_of
from tests.rank_jobs.kinds import one_of_each_kind
from tests.trainer.kit import SaveAt, emo_of, lora, outcome, trained

PAIRS = [(False, 1, "full"), (True, 3, "full"), (True, 1, "LoRA"), (False, 3, "LoRA")]  # shadow, accumulation, model
KINDS = [(cls.__name__.partition("_")[0].lower(), version_of(cls).name) for cls in one_of_each_kind(OPTIMIZERS)]
CASES = [(*kind, *PAIRS[place % 4]) for place, kind in enumerate([*KINDS, ("emosens", "v3.9"), ("emonavi", "v3.6")])]


def lively_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss whose changes are large beside it: ten steps are enough to move the coefficient."""
    return 5.0 * torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch - 4.4


def run(folder: Path, model: str = "full", **changes: Any) -> Trainer:
    made = lora(lora_dropout=0.1) if model == "LoRA" else tiny.classifier()
    settings = {"compute_loss_func": lively_loss, "learning_rate": 5e-3, "logging_steps": 2, "seed": 3}
    return trained(folder, model=made, data=tiny.examples(18), **settings | changes)


@pytest.mark.parametrize(("name", "version", "shadow", "accumulation", "model"), CASES)
def test_it_trains_by_name_logs_and_goes_on_as_if_it_had_not_been_interrupted(
    name: str, version: str, shadow: bool, accumulation: int, model: str, tmp_path: Path
) -> None:
    scaled = emo_hf.FAMILY[name].versions[version].lr_is_a_scale
    changes = {
        "model": model, "optim": name, "optim_args": f"version={version},use_shadow={shadow}",
        "gradient_accumulation_steps": accumulation, "num_train_epochs": 4 if accumulation == 3 else 2,
        "learning_rate": 10.0 if scaled else 2e-2 if name == "emolynx" else 5e-3,
    }  # fmt: skip
    last = 10 if accumulation == 1 else 8
    step = 1 + CASES.index((name, version, shadow, accumulation, model)) % (last - 1)  # over the cases, at every step
    trainer = run(tmp_path, **changes, callbacks=[SaveAt(step)])
    whole, optimizer = outcome(trainer), emo_of(trainer)
    assert (type(optimizer), optimizer.version, whole["step"]) == (emo_hf.FAMILY[name], version, last)
    assert (optimizer.emotion.law, optimizer.emotion.observations) == (version, last)
    for line in whole["lines"]:
        assert all(math.isfinite(value) for key, value in line.items() if key.startswith("emo/"))
        rate = line["learning_rate"] * line["emo/coefficient"]
        assert line["emo/effective_lr"] == pytest.approx(rate if version != "v3.9" else max(rate, 1e-8), rel=1e-9)
    ranges = [(line["emo/coefficient_min"], line["emo/coefficient_max"]) for line in whole["lines"]]
    lively = any(extremes != (1.0, 1.0) for extremes in ranges)
    assert lively or model == "LoRA", "the emotion should have something to say, though adapters start at nothing"
    assert_identical(outcome(run(tmp_path, **changes, resume=tmp_path / f"checkpoint-{step}")), whole)


@pytest.mark.parametrize("law", ["v3.1", "robust"])
def test_the_self_stop_window_and_the_law_go_on_across_the_interruption(law: str, tmp_path: Path) -> None:
    changes = {
        "num_train_epochs": 9, "learning_rate": 1e-5, "logging_steps": 7,
        "optim_args": f"emo_law={law},self_stop=save,self_stop_patience=1,self_stop_min_steps=2",
    }  # fmt: skip
    trainer = run(tmp_path, **changes, save_strategy="steps", save_steps=25)
    assert emo_of(trainer).emotion.should_stop
    assert_identical(outcome(run(tmp_path, **changes, resume=tmp_path / "checkpoint-25")), outcome(trainer))


@pytest.mark.parametrize("only_model", [False, True])
def test_a_run_resumed_from_the_weights_alone_starts_its_emotion_afresh(only_model: bool, tmp_path: Path) -> None:
    run(tmp_path, callbacks=[SaveAt(4)], save_only_model=only_model)
    if not only_model:
        (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    resumed = run(tmp_path, num_train_epochs=2, resume=tmp_path / "checkpoint-4")
    emotion = emo_of(resumed).emotion
    assert (resumed.state.global_step, emotion.observations, emotion.skipped) == (10, 6, 0)
    assert next(line["emo/observations"] for line in tiny.train_lines(resumed) if line["step"] == 6) == 2


def test_every_name_parses_and_a_checkpoint_of_one_generation_is_not_taken_for_another(tmp_path: Path) -> None:
    parser, model = HfArgumentParser(TrainingArguments), tiny.classifier()
    for name, cls in emo_hf.FAMILY.items():
        (parsed,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--optim", name])
        assert parsed.optim.value == name
        state = emo_hf.create_optimizer(name, model).state_dict()
        for version in list(cls.versions)[1:]:
            with pytest.raises(ValueError, match="make the optimizer with version="):
                emo_hf.create_optimizer(name, model, version=version).load_state_dict(state)
