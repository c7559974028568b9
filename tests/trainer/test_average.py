"""The average of the weights in a Trainer: it is there while something evaluates or saves, and after training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback

import emo_hf
from emo_hf import EmoCallback, attach
from emo_hf.integrations import patches
from emo_hf.integrations.patches import PATCHES
from emo_hf.laws.metrics import NOTES
from emo_hf.trainer import patches as trainer_patches
from tests import tiny
from tests.emo_cases import assert_identical

OWN = {"optim": "emonavi", "optim_args": "average_weights=true"}
WITH_LAW = {"optim": "adamw_torch", "emotion": "v3.1"}
ALONE = {"optim": "adamw_torch", "emotion": None}

each = pytest.mark.parametrize("settings", [OWN, WITH_LAW, ALONE], ids=["emonavi", "attached", "without a law"])


def trainer(folder: Path, settings: dict[str, Any], *, callbacks: Any = (), **changes: Any) -> Any:
    steps = {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    own = [EmoCallback(settings["emotion"], average_weights=True)] if "emotion" in settings else []
    given = {key: value for key, value in settings.items() if key != "emotion"}
    data = {"eval_dataset": tiny.examples(8, seed=1), "callbacks": [*own, *callbacks]}
    return tiny.trainer(folder, **data, **{"learning_rate": 1e-2, **steps, **given, **changes})


def weights(made: Any) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in made.model.named_parameters()}


def saved(folder: Path, made: Any) -> dict[str, torch.Tensor]:
    kept = load_file(folder / "model.safetensors")
    return {name: kept[name] for name in weights(made)}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


class Looks(TrainerCallback):
    """Notes the weights that others see: after each step, and in every event until the next step."""

    def __init__(self) -> None:
        self.after_step: dict[str, torch.Tensor] = {}
        self.changed_in: list[str] = []
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.after_step = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.steps.append(self.after_step)

    def _look(self, event: str, model: Any) -> None:
        if differ(self.after_step, dict(model.named_parameters())):
            self.changed_in.append(event)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self._look("step_end", model)

    def on_log(self, args, state, control, model=None, logs=None, **kwargs) -> None:
        if "train_runtime" not in (logs or {}):
            self._look("log", model)

    def on_evaluate(self, args, state, control, model=None, **kwargs) -> None:
        self._look("evaluate", model)

    def on_save(self, args, state, control, model=None, **kwargs) -> None:
        self._look("save", model)

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        if self.after_step:
            self._look("step_begin", model)


@each
def test_what_is_evaluated_is_saved_and_what_training_ends_with_and_nobody_else_sees_it(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    looks = Looks()
    made = trainer(tmp_path, settings, callbacks=[looks])
    made.train()
    assert looks.changed_in == []
    at_the_end = weights(made)
    assert differ(at_the_end, looks.after_step)
    assert_identical(saved(tmp_path / "checkpoint-9", made), at_the_end)
    made.save_model(str(tmp_path / "final"))
    assert_identical(saved(tmp_path / "final", made), at_the_end)
    logged = [line["eval_loss"] for line in made.state.log_history if "eval_loss" in line]
    assert made.evaluate()["eval_loss"] == pytest.approx(logged[-1], rel=1e-6)
    for number, loss in zip((3, 6, 9), logged, strict=True):
        made.model.load_state_dict(load_file(tmp_path / f"checkpoint-{number}" / "model.safetensors"))
        assert made.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)


@each
@pytest.mark.parametrize("evaluates", [True, False])
def test_a_resumed_run_ends_as_the_one_that_was_not_interrupted(
    tmp_path: Path, settings: dict[str, Any], evaluates: bool
) -> None:
    changes = {} if evaluates else {"eval_strategy": "no"}
    one, other = Looks(), Looks()
    whole = trainer(tmp_path / "whole", settings, callbacks=[one], **changes)
    whole.train()
    resumed = trainer(tmp_path / "resumed", settings, callbacks=[other], **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert_identical(weights(resumed), weights(whole))
    assert_identical(other.steps, one.steps[6:])


def test_the_run_is_the_one_without_an_average(tmp_path: Path) -> None:
    with_it, without = Looks(), Looks()
    trainer(tmp_path / "a", ALONE, callbacks=[with_it]).train()
    trainer(tmp_path / "b", {"optim": "adamw_torch"}, callbacks=[without]).train()
    assert_identical(with_it.steps, without.steps)


def test_without_a_law_no_loss_is_missed_and_nothing_is_scaled(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    made = trainer(tmp_path, ALONE)
    made.train()
    assert not [str(warning.message) for warning in recwarn if "loss" in str(warning.message)]
    assert {line["emo/coefficient"] for line in tiny.train_lines(made)} == {1.0}


@pytest.mark.parametrize("optim", ["emonavi", "adamw_torch"])
def test_registration_gives_every_trainer_an_average(tmp_path: Path, optim: str) -> None:
    emo_hf.register(average_weights="true")
    looks = Looks()
    made = tiny.trainer(tmp_path, optim=optim, max_steps=4, learning_rate=1e-2, callbacks=[looks])
    made.train()
    assert differ(weights(made), looks.after_step)
    emo_hf.unregister()
    emo_hf.register()
    made = tiny.trainer(tmp_path, optim=optim, max_steps=4, learning_rate=1e-2, callbacks=[looks])
    made.train()
    assert not differ(weights(made), looks.after_step)


def test_an_average_that_is_asked_for_and_cannot_be_had_is_refused(tmp_path: Path) -> None:
    model = tiny.classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(optimizer)
    made = trainer(tmp_path, ALONE, model=model, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="was made without an average of the weights"):
        made.train()
    with pytest.raises(ValueError, match="average_weights='yes' is not acceptable"):
        EmoCallback(average_weights="yes")


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
    looks = Looks()
    made = kind(
        model=tiny.classifier(), train_dataset=tiny.examples(), eval_dataset=tiny.examples(4), callbacks=[looks],
        args=tiny.arguments(
            tmp_path, **OWN, max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=3
        ),
    )  # fmt: skip
    made.train()
    assert made.state.global_step == 6
    assert set(looks.changed_in) <= ({"log"} if kind is OwnEvaluation else set())  # the line of its own evaluation


class Interrupted(RuntimeError):
    pass


@pytest.mark.parametrize("place", ["evaluation", "save"])
def test_an_exception_in_an_evaluation_or_a_save_leaves_the_weights(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks()
    made = trainer(tmp_path, OWN, callbacks=[looks])

    def interrupted(*args: Any, **kwargs: Any) -> None:
        assert differ(weights(made), looks.after_step), "the average is shown by now"
        raise Interrupted

    name = "prediction_step" if place == "evaluation" else "_save_optimizer_and_scheduler"
    with monkeypatch.context() as patched:
        patched.setattr(made, name, interrupted)
        with pytest.raises(Interrupted):
            made.train()
    assert not differ(weights(made), looks.after_step)
    made.train()
    assert made.state.global_step == 9


def test_a_checkpoint_just_in_time_holds_the_average_and_goes_on_exactly(tmp_path: Path) -> None:
    """What transformers does at SIGTERM: `_save_checkpoint` in the middle of an event, without `should_save`."""

    class InTime(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 5:
                made._save_checkpoint(made.model, trial=None)

    one, other = Looks(), Looks()
    made = trainer(tmp_path, WITH_LAW, callbacks=[one, InTime()], save_strategy="no")
    made.train()
    assert differ(saved(tmp_path / "checkpoint-5", made), one.steps[4])
    resumed = trainer(tmp_path / "resumed", WITH_LAW, callbacks=[other], save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_identical(other.steps, one.steps[5:])


def test_the_notes_of_a_checkpoint_say_which_weights_it_holds(tmp_path: Path) -> None:
    trainer(tmp_path, WITH_LAW).train()
    notes = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"][NOTES]
    assert (notes["step"], notes["emotion"]["average_shown"]) == (6, True)


def test_weights_that_nodes_exchange_have_no_average_beside_them(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out", OWN)
    made.add_callback(emo_hf.WeightExchangeCallback(folder=tmp_path / "shared", node="one", every=2))
    with pytest.raises(ValueError, match="does not go with average_weights=True"):
        made.train()


@each
def test_the_best_model_that_was_loaded_stays(tmp_path: Path, settings: dict[str, Any]) -> None:
    wanted = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    made = trainer(tmp_path, settings, **wanted)  # the largest loss, so that it is not the last model
    made.train()
    best = Path(made.state.best_model_checkpoint)
    assert best.name != "checkpoint-9"
    assert_identical(weights(made), saved(best, made))
    assert made.evaluate()["eval_loss"] == pytest.approx(made.state.best_metric, rel=1e-6)
    assert_identical(weights(made), saved(best, made))


@each
def test_a_second_training_goes_on_from_the_average_with_a_new_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    looks = Looks()
    made = trainer(tmp_path, settings, callbacks=[looks])
    made.train()
    begins_with = weights(made)
    made.args.max_steps = 1
    for group in made.optimizer.param_groups:
        group["initial_lr"] = 1e-6
    made.train()
    assert not differ(weights(made), looks.steps[9]), "after one step the average is the weights"
    moved = max(float((looks.steps[9][name] - begins_with[name]).abs().max()) for name in begins_with)
    assert moved < 1e-4, "which go on from what the first training ended with"


def test_a_model_with_statistics_of_its_batches_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.classifier()
    model.dropout = nn.Sequential(nn.BatchNorm1d(16), model.dropout)
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        trainer(tmp_path, ALONE, model=model).train()
        assert caplog.text.count("torch.optim.swa_utils.update_bn") == 1
        caplog.clear()
        tiny.trainer(tmp_path, model=model, max_steps=2).train()
    assert not caplog.records


def test_the_methods_of_transformers_are_given_back() -> None:
    trainer_patches.install()
    places = [place for place in PATCHES if place.startswith("transformers") and place in patches._before]
    with_ours = {place: getattr(*patches._find(place)) for place in places}
    assert len(with_ours) >= 8
    trainer_patches.install()
    assert {place: getattr(*patches._find(place)) for place in places} == with_ours
    emo_hf.unregister()
    for place, ours in with_ours.items():
        assert getattr(*patches._find(place)) is ours.__wrapped__
        assert getattr(*patches._find(place)).__module__.startswith("transformers.")


def test_a_method_that_a_version_of_transformers_does_not_have_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emo_hf.unregister()
    monkeypatch.delattr(Trainer, "_evaluate")
    emo_hf.register()
    emo_hf.register()
    assert [line.partition(" ")[0] for line in caplog.messages if "is not there in this version" in line] == [
        "transformers:Trainer._evaluate"
    ]
    emo_hf.unregister()
