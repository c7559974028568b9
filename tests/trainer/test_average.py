"""The average of the weights in a Trainer: it is there while something evaluates or saves, and after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback

import emo_hf
from emo_hf import EmoCallback, attach
from emo_hf.laws.metrics import NOTES
from tests import tiny
from tests.emo_cases import assert_identical
from tests.trainer.kit import said, weights

OWN = {"optim": "emonavi", "optim_args": "average_weights=true"}
WITH_LAW = {"optim": "adamw_torch", "emotion": "v3.1"}
ALONE = {"optim": "adamw_torch", "emotion": None}
SETTINGS = {"emonavi": OWN, "attached": WITH_LAW, "without a law": ALONE}

Weights = dict[str, torch.Tensor]


def trainer(folder: Path, settings: dict[str, Any], *, callbacks: Any = (), **changes: Any) -> Any:
    steps = {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    own = [EmoCallback(settings["emotion"], average_weights=True)] if "emotion" in settings else []
    given = {key: value for key, value in settings.items() if key != "emotion"}
    data = {"eval_dataset": tiny.examples(8, seed=1), "callbacks": [*own, *callbacks]}
    return tiny.trainer(folder, **data, **{"learning_rate": 1e-2, **steps, **given, **changes})


def saved(folder: Path, made: Trainer) -> Weights:
    kept = load_file(folder / "model.safetensors")
    return {name: kept[name] for name in weights(made.model)}


def differ(one: Weights, other: Weights) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


class Looks(TrainerCallback):
    """Notes the weights of each step, and the events until the next step in which others see different ones."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []
        self.changed_in: list[str] = []

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append(weights(model))


def looking(event: str) -> Any:
    def look(self, args, state, control, model=None, logs=None, **kwargs) -> None:
        is_the_end = "train_runtime" in (logs or {})
        if self.steps and not is_the_end and differ(self.steps[-1], dict(model.named_parameters())):
            self.changed_in.append(event)

    return look


for event in ("on_step_end", "on_log", "on_evaluate", "on_save", "on_step_begin"):
    setattr(Looks, event, looking(event))


class Run:
    """A run in a folder, and the weights of its steps and of its end."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: Path | None = None, **changes: Any) -> None:
        self.folder, self.settings, self.looks = folder, settings, Looks()
        changes["callbacks"] = [self.looks, *changes.pop("callbacks", [])]
        self.made = trainer(folder, settings, **changes)
        self.made.train(resume_from_checkpoint=None if resume is None else str(resume))
        self.end = weights(self.made.model)


class SavesInBetween(TrainerCallback):
    """What a user's callback may call, and what transformers does at SIGTERM: both in the middle of an event."""

    trainer: Trainer

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 5:
            self.trainer._save_checkpoint(model, trial=None)
            self.trainer.save_model(args.output_dir)


@pytest.fixture(scope="module", params=SETTINGS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    emo_hf.register()
    return Run(tmp_path_factory.mktemp("whole"), SETTINGS[request.param])


def test_what_is_evaluated_is_saved_and_what_training_ends_with_and_nobody_else_sees_it(whole: Run) -> None:
    made = whole.made
    assert whole.looks.changed_in == []
    assert differ(whole.end, whole.looks.steps[-1])
    assert_identical(saved(whole.folder / "checkpoint-9", made), whole.end)
    logged = [line["eval_loss"] for line in made.state.log_history if "eval_loss" in line]
    for number, loss in zip((3, 6, 9), logged, strict=True):
        made.model.load_state_dict(load_file(whole.folder / f"checkpoint-{number}" / "model.safetensors"))
        assert made.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)
    notes = json.loads((whole.folder / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"][NOTES]
    if whole.settings is not OWN:  # which weights a checkpoint holds
        assert (notes["step"], notes["emotion"]["average_shown"]) == (6, True)


def test_a_resumed_run_that_evaluates_less_ends_as_the_one_that_was_not_interrupted(
    whole: Run, tmp_path: Path
) -> None:
    resumed = Run(tmp_path, whole.settings, resume=whole.folder / "checkpoint-6", eval_strategy="no")
    assert_identical(resumed.end, whole.end)
    assert_identical(resumed.looks.steps, whole.looks.steps[6:])


def test_a_save_in_between_holds_the_average_and_goes_on_exactly(tmp_path: Path) -> None:
    looks, between = Looks(), SavesInBetween()
    between.trainer = made = trainer(tmp_path, WITH_LAW, callbacks=[looks, between], save_strategy="no")
    made.train()
    assert differ(saved(tmp_path, made), looks.steps[4])
    assert_identical(saved(tmp_path, made), saved(tmp_path / "checkpoint-5", made))
    resumed = Run(tmp_path / "resumed", WITH_LAW, resume=tmp_path / "checkpoint-5", save_strategy="no")
    assert_identical(resumed.looks.steps, looks.steps[5:])


@pytest.mark.parametrize("optim", ["emonavi", "adamw_torch"])
def test_registration_gives_every_trainer_an_average_that_changes_no_step_until_it_is_taken_back(
    tmp_path: Path, optim: str, recwarn: pytest.WarningsRecorder
) -> None:
    runs = []
    for given in ({"average_weights": "true"}, {}):
        emo_hf.unregister()
        emo_hf.register(**given)
        run = Run(tmp_path, {"optim": optim}, max_steps=4, eval_strategy="no", save_strategy="no")
        assert differ(run.end, run.looks.steps[-1]) == bool(given)
        runs.append(run)
    assert_identical(runs[0].looks.steps, runs[1].looks.steps)
    assert not [str(warning.message) for warning in recwarn if "loss" in str(warning.message)]
    if optim == "adamw_torch":
        assert {line["emo/coefficient"] for line in tiny.train_lines(runs[0].made)} == {1.0}


def test_an_average_that_is_asked_for_and_cannot_be_had_is_refused(tmp_path: Path) -> None:
    model = tiny.classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(optimizer)
    with pytest.raises(ValueError, match="was made without an average of the weights"):
        Run(tmp_path, ALONE, model=model, optimizers=(optimizer, None))
    shared = emo_hf.WeightExchangeCallback(folder=tmp_path / "shared", node="one", every=2)
    with pytest.raises(ValueError, match="does not go with average_weights=True"):
        Run(tmp_path / "out", OWN, callbacks=[shared])


class OwnTrainingStep(Trainer):
    """Has a training step of its own, which never calls `optimizer.train()`, as TRL's OnlineDPO."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = self.compute_loss(model, inputs)
        self.accelerator.backward(loss)
        return loss.detach()


class OwnEvaluation(OwnTrainingStep):
    """Has an evaluation loop of its own, which leaves the optimizer in its evaluation mode."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.optimizer.eval()
        return Trainer.evaluation_loop.__wrapped__(self, *args, **kwargs)


@pytest.mark.parametrize("kind", [OwnTrainingStep, OwnEvaluation])
def test_a_trainer_with_loops_of_its_own_trains(tmp_path: Path, kind: type[Trainer]) -> None:
    run = Run(tmp_path, OWN, kind=kind, max_steps=6, eval_steps=2)
    assert run.made.state.global_step == 6
    # The line of its own evaluation.
    assert set(run.looks.changed_in) <= ({"on_log"} if kind is OwnEvaluation else set())


class Interrupted(RuntimeError):
    pass


@pytest.mark.parametrize("place", ["prediction_step", "_save_optimizer_and_scheduler"])
def test_an_exception_in_an_evaluation_or_a_save_leaves_the_weights(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks()
    made = trainer(tmp_path, OWN, callbacks=[looks])

    def interrupted(*args: Any, **kwargs: Any) -> None:
        assert differ(weights(made.model), looks.steps[-1]), "the average is shown by now"
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(made, place, interrupted)
        with pytest.raises(Interrupted):
            made.train()
    assert not differ(weights(made.model), looks.steps[-1])
    made.train()
    assert made.state.global_step == 9


@pytest.mark.parametrize("settings", [OWN, ALONE], ids=["emonavi", "without a law"])
def test_the_best_model_that_was_loaded_stays(tmp_path: Path, settings: dict[str, Any]) -> None:
    wanted = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    made = Run(tmp_path, settings, **wanted).made  # the largest loss, so that it is not the last model
    best = Path(made.state.best_model_checkpoint)
    assert best.name != "checkpoint-9"
    assert made.evaluate()["eval_loss"] == pytest.approx(made.state.best_metric, rel=1e-6)
    assert_identical(weights(made.model), saved(best, made))


@pytest.mark.parametrize("settings", [OWN, WITH_LAW], ids=["emonavi", "attached"])
def test_a_second_training_goes_on_from_the_average_with_a_new_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = Run(tmp_path, settings)
    made, looks = run.made, run.looks
    made.args.max_steps = 1
    for group in made.optimizer.param_groups:
        group["initial_lr"] = 1e-6
    made.train()
    assert not differ(weights(made.model), looks.steps[9]), "after one step the average is the weights"
    moved = max(float((looks.steps[9][name] - run.end[name]).abs().max()) for name in run.end)
    assert moved < 1e-4, "which go on from what the first training ended with"


def test_a_model_with_statistics_of_its_batches_is_warned_of_where_there_is_an_average(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.classifier()
    model.dropout = nn.Sequential(nn.BatchNorm1d(16), model.dropout)
    tiny.trainer(tmp_path, model=model, max_steps=2).train()
    assert not said(caplog)
    Run(tmp_path, ALONE, model=model, max_steps=2)
    assert ["torch.optim.swa_utils.update_bn" in line for line in said(caplog)] == [True]
