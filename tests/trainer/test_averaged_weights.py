"""`average_weights` in a Trainer: what is evaluated is saved, and is what training ends with; runs go on exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import emo_hf
from emo_hf import EmoCallback
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.metrics import NOTES
from emo_hf.optim.state_keys import AVERAGE
from tests import tiny
from tests.emo_cases import assert_identical

OWN = {"optim": "emonavi", "optim_args": "emo_law=settle,average_weights=true"}
ATTACHED = {"optim": "adamw_torch"}

either = pytest.mark.parametrize("settings", [OWN, ATTACHED], ids=["emonavi", "adamw with settle"])


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    emo_hf.register()
    yield
    emo_hf.unregister()


def trainer(folder: Path, settings: dict[str, Any], **changes: Any) -> Any:
    callbacks = [EmoCallback(emotion="settle", average_weights=True)] if settings is ATTACHED else []
    steps = {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    data = {"eval_dataset": tiny.examples(8, seed=1), "callbacks": callbacks}
    return tiny.trainer(folder, **data, **{"learning_rate": 1e-2, **steps, **settings, **changes})


def weights(made: Any) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in made.model.named_parameters()}


def saved(folder: Path, made: Any) -> dict[str, torch.Tensor]:
    kept = load_file(folder / "model.safetensors")
    return {name: kept[name] for name in weights(made)}


@either
def test_checkpoints_hold_what_was_evaluated_and_training_ends_with_the_average(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    made = trainer(tmp_path, settings)
    made.train()
    at_the_end = weights(made)
    emo = unwrap(made.optimizer)
    averages = {name: emo.state[param][AVERAGE] for name, param in made.model.named_parameters()}
    assert any(not torch.equal(at_the_end[name], averages[name]) for name in averages)
    assert_identical(saved(tmp_path / "checkpoint-9", made), at_the_end)
    logged = [line["eval_loss"] for line in made.state.log_history if "eval_loss" in line]
    for number, loss in zip((3, 6, 9), logged, strict=True):
        made.model.load_state_dict(load_file(tmp_path / f"checkpoint-{number}" / "model.safetensors"))
        made.model.eval()
        assert made.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)


@either
@pytest.mark.parametrize("evaluates", [True, False])
def test_a_resumed_run_ends_as_the_one_that_was_not_interrupted(
    tmp_path: Path, settings: dict[str, Any], evaluates: bool
) -> None:
    changes = {} if evaluates else {"eval_strategy": "no"}
    whole = trainer(tmp_path / "whole", settings, **changes)
    whole.train()
    resumed = trainer(tmp_path / "resumed", settings, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert_identical(weights(resumed), weights(whole))
    for made in (whole, resumed):
        unwrap(made.optimizer).train()
    assert_identical(weights(resumed), weights(whole))


@pytest.mark.parametrize("evaluates", [True, False])
def test_the_notes_of_a_checkpoint_say_which_weights_it_holds(tmp_path: Path, evaluates: bool) -> None:
    emo_hf.unregister()  # so that one callback does it all
    trainer(tmp_path, ATTACHED, **({} if evaluates else {"eval_strategy": "no"})).train()
    notes = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"][NOTES]
    assert notes["emotion"]["shows_average"] is True


def test_weights_that_nodes_exchange_have_no_average_beside_them(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out", OWN)
    made.add_callback(emo_hf.WeightExchangeCallback(folder=tmp_path / "shared", node="one", every=2))
    with pytest.raises(ValueError, match="does not go with average_weights=true"):
        made.train()


@either
def test_the_best_model_that_was_loaded_stays(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = trainer(tmp_path, settings, load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=0.1)
    made.train()
    best = Path(made.state.best_model_checkpoint)
    assert_identical(weights(made), saved(best, made))
    assert made.evaluate()["eval_loss"] == pytest.approx(made.state.best_metric, rel=1e-6)
    assert_identical(weights(made), saved(best, made))
