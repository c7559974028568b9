"""Every optimizer and generation by its name: it trains in the Trainer, logs, saves and resumes to the last bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, Trainer, TrainingArguments

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.emo_cases import assert_identical

GENERATIONS = [(name, version) for name, cls in emo_hf.FAMILY.items() for version in cls.versions]
INTERRUPTED_AT = 5


@pytest.fixture(autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


def run(folder: Path, name: str, version: str, **resume: Any) -> Trainer:
    """Two epochs of four steps, with a shadow, by name and with nothing but the Trainer's own learning rate."""
    scaled = emo_hf.FAMILY[name].versions[version].lr_is_a_scale
    trainer = tiny.trainer(
        folder, data=tiny.examples(16), optim=name, optim_args=f"version={version},use_shadow=true",
        learning_rate=5e-5 if scaled else 5e-3, num_train_epochs=2, logging_steps=2, warmup_steps=1,
        save_strategy="no" if resume else "steps", save_steps=INTERRUPTED_AT,
    )  # fmt: skip
    trainer.train(**resume)
    return trainer


def outcome(trainer: Trainer) -> dict[str, Any]:
    # The Trainer's own window of `loss` is not in its checkpoints: after a resume it begins anew.
    lines = [{key: value for key, value in line.items() if key != "loss"} for line in tiny.train_lines(trainer)]
    return {
        "weights": dict(trainer.model.state_dict()),
        "optimizer": unwrap(trainer.optimizer).state_dict(),
        "rates": trainer.lr_scheduler.get_last_lr(),
        "lines": lines,
    }


@pytest.mark.parametrize(("name", "version"), GENERATIONS)
def test_it_trains_by_name_logs_and_resumes_as_if_it_had_not_been_interrupted(
    name: str, version: str, tmp_path: Path
) -> None:
    whole = run(tmp_path, name, version)
    optimizer = unwrap(whole.optimizer)
    assert (type(optimizer), optimizer.version) == (emo_hf.FAMILY[name], version)
    assert (optimizer.emotion.law, optimizer.emotion.observations) == (version, 8)
    before, after = tiny.classifier().state_dict(), whole.model.state_dict()
    assert sum(not before[key].equal(after[key]) for key in before) > len(before) // 2, "most weights have moved"
    lines = tiny.train_lines(whole)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for line in lines:
        assert all(math.isfinite(value) for key, value in line.items() if key == "loss" or key.startswith("emo/"))
        assert line["emo/observations"] == line["step"]
        rate = line["learning_rate"] * line["emo/coefficient"]
        assert line["emo/effective_lr"] == pytest.approx(rate if version != "v3.9" else max(rate, 1e-8), rel=1e-9)
    resumed = run(tmp_path, name, version, resume_from_checkpoint=str(tmp_path / f"checkpoint-{INTERRUPTED_AT}"))
    assert_identical(outcome(resumed), outcome(whole))


@pytest.mark.parametrize("name", emo_hf.FAMILY)
def test_the_name_parses_on_the_command_line(name: str, tmp_path: Path) -> None:
    (parsed,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--optim", name]
    )
    assert parsed.optim.value == name


@pytest.mark.parametrize("name", emo_hf.FAMILY)
def test_a_checkpoint_of_one_generation_is_not_taken_for_another(name: str) -> None:
    model = tiny.classifier()
    state = emo_hf.create_optimizer(name, model).state_dict()
    for version in emo_hf.FAMILY[name].versions:
        optimizer = emo_hf.create_optimizer(name, model, version=version)
        if version == next(iter(emo_hf.FAMILY[name].versions)):
            optimizer.load_state_dict(state)
        else:
            with pytest.raises(ValueError, match="make the optimizer with version="):
                optimizer.load_state_dict(state)
