"""An emotion for the optimizers of others in the Trainer and in loops of accelerate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import lr_scheduler
from transformers import Trainer, TrainerCallback

import emo_hf
from emo_hf import EmoCallback, attach
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import make_law
from emo_hf.trainer.self_stop import SelfStop
from tests import tiny
from tests.emo_cases import assert_identical
from tests.trainer.kit import SaveAt, emo_of, said, trained, weights

STEPS, SAVED_AT = 16, 7


def run(folder: Path, optim: str = "adamw_torch", **changes: Any) -> Trainer:
    settings: dict[str, Any] = {"max_steps": STEPS, "data": tiny.examples(8), "learning_rate": 1e-2}
    if optim == "sgd":
        settings["learning_rate"] = 0.5
    return trained(folder, optim=optim, **(settings | changes))


class Notes(TrainerCallback):
    """Notes the emotion that training begins with, and the factors."""

    def __init__(self) -> None:
        self.began: Any = None
        self.factors: list[float] = []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.began = unwrap(optimizer).emotion

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.factors.append(unwrap(optimizer).emotion.coefficient)


@pytest.mark.parametrize(
    ("optim", "accumulation"), [("adamw_torch_fused", 3), ("adafactor", 1), ("sgd", 1), ("schedule_free_adamw", 1)]
)
def test_a_trainers_optimizer_is_scaled_by_the_losses_that_are_logged_and_a_resumed_run_ends_the_same(
    optim: str, accumulation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if optim.startswith("schedule_free"):
        pytest.importorskip("schedulefree")
    felt, notes, again = tiny.Felt(), Notes(), Notes()
    changes = {"optim": optim, "gradient_accumulation_steps": accumulation}
    emotion, save = EmoCallback(emotion="v3.6"), SaveAt(SAVED_AT)
    whole = run(tmp_path, **changes, callbacks=[emotion, felt, notes, save])
    lines = tiny.train_lines(whole)
    assert felt.losses == [line["loss"] for line in lines]
    law = make_law("v3.6", "v3.1", {})
    assert notes.factors == [law.feel(loss).coefficient for loss in felt.losses]
    assert max(notes.factors) > 1.5 * min(notes.factors), "the emotion has something to say"
    for line in lines:
        assert line["emo/effective_lr"] == pytest.approx(line["learning_rate"] * line["emo/coefficient"], rel=1e-5)
    caplog.clear()
    resume = tmp_path / f"checkpoint-{SAVED_AT}"
    resumed = run(tmp_path, **changes, callbacks=[EmoCallback(emotion="v3.6"), again], resume=resume)
    assert again.began.observations == SAVED_AT
    assert_identical(weights(resumed.model), weights(whole.model))
    assert emo_of(resumed).emotion == emo_of(whole).emotion
    assert not said(caplog)


# Checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("whole")
    emo_hf.register()
    return folder / f"checkpoint-{SAVED_AT}", run(folder, callbacks=[EmoCallback(emotion="v3.6"), SaveAt(SAVED_AT)])


@pytest.fixture
def forgotten(whole: tuple[Path, Trainer], tmp_path: Path) -> Path:
    """A checkpoint as FSDP loads it: nothing that the optimizer has no place for yet."""
    folder = Path(shutil.copytree(whole[0], tmp_path / whole[0].name))
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    for group in state["param_groups"]:
        del group["emotion"]
    torch.save(state, folder / "optimizer.pt")
    return folder


@pytest.mark.parametrize("stale", [False, True], ids=["of this step", "of a run that went on without an emotion"])
def test_an_emotion_that_the_optimizer_could_not_load_is_read_from_the_notes_of_its_step(
    stale: bool, forgotten: Path, whole: tuple[Path, Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, notes = forgotten / "trainer_state.json", Notes()
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["emo_hf"]["step"] -= stale
    file.write_text(json.dumps(state))
    resumed = run(tmp_path, callbacks=[EmoCallback(emotion="v3.6"), notes], resume=forgotten)
    if stale:
        assert notes.began.observations == 0
        assert said(caplog) == [f"The checkpoint of step {SAVED_AT} holds no emotion: it starts afresh."]
    else:
        assert notes.began.observations == SAVED_AT
        assert_identical(weights(resumed.model), weights(whole[1].model))
        assert emo_of(resumed).emotion == emo_of(whole[1]).emotion


def test_a_checkpoint_of_another_law_is_refused_with_both_names(
    forgotten: Path, whole: tuple[Path, Trainer], tmp_path: Path
) -> None:
    for checkpoint in (forgotten, whole[0]):
        with pytest.raises(ValueError, match=r"follows the law 'v3.6', the one attached here 'v3.1'.*emotion='v3.6'"):
            run(tmp_path, callbacks=[EmoCallback(emotion="v3.1")], resume=checkpoint)


def test_checkpoints_with_and_without_an_emotion_are_resumed_by_runs_without_one(
    whole: tuple[Path, Trainer], tmp_path: Path
) -> None:
    emo_hf.unregister()
    run(tmp_path, callbacks=[SaveAt(3)], max_steps=3)
    emo_hf.register()
    for checkpoint in (whole[0], tmp_path / "checkpoint-3"):
        made = run(tmp_path, callbacks=[SaveAt(9)], resume=checkpoint)
        assert (made.state.global_step, emo_of(made)) == (STEPS, None)


# Which emotion it is


def test_registering_an_emotion_gives_it_to_every_trainer_until_it_is_taken_back(tmp_path: Path) -> None:
    emo_hf.register(emotion="v3.9", stopcoef=0.5, sync="local")
    made = run(tmp_path, max_steps=2)
    handle = emo_of(made)
    assert (handle.emotion.law, handle._engine.law.stopcoef, handle.emo_sync) == ("v3.9", 0.5, "local")
    assert tiny.train_lines(made)[-1]["emo/observations"] == 2
    emo_hf.unregister()
    assert emo_of(run(tmp_path, max_steps=2)) is None


def test_an_emotion_that_the_user_attached_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = attach(optimizer, "v3.0")
    given = {"model": model, "optimizers": (optimizer, None), "callbacks": [EmoCallback(emotion="v3.1")]}
    made = run(tmp_path, **given, max_steps=2)
    assert emo_of(made) is handle
    assert tiny.train_lines(made)[-1]["emo/observations"] == handle.emotion.observations == 2
    assert said(caplog) == ["The optimizer has an emotion of the law v3.0 already."]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"emotion": "v9"}, ValueError, "emo_law must be one of .* got 'v9'"),
        ({"emotion": "v3.1", "stopcoef": 1}, TypeError, "the law v3.1 has no option stopcoef"),
        ({"sync": "local"}, ValueError, "was given sync but no emotion that this is for: name a law"),
        ({"self_stop": SelfStop()}, ValueError, "was given self_stop but no emotion"),
        ({"console": "some", "emotion": "v3.1"}, ValueError, "console='some' is not acceptable"),
        ({"average_weights": "yes"}, ValueError, "average_weights='yes' is not acceptable"),
        ({"emotion": "v3.1", "self_stop": "halt"}, ValueError, "action='halt' .* takes one of off, log, save, stop"),
    ],
)
def test_wrong_arguments_are_refused_before_training(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        EmoCallback(**arguments)


# accelerate


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("attached_first", [True, False])
def test_with_accumulation_and_a_gradient_scaler_skipped_steps_take_their_loss_along_and_rates_come_back(
    attached_first: bool,
) -> None:
    """accelerate puts the step() that it prepared in the place of the present one, at every step."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # as mixed_precision="fp16" has it on a GPU
    model = nn.Linear(2, 1)
    inner = torch.optim.AdamW(model.parameters(), lr=0.5)
    scheduler = lr_scheduler.ExponentialLR(inner, 0.5)
    handle = attach(inner) if attached_first else None
    model, optimizer = accelerator.prepare(model, inner)
    handle = handle or attach(optimizer)
    seen: list[float] = []
    for target, fate in ((1.0, ""), (50.0, "overflows"), (20.0, ""), (2.0, "raises"), (2.0, "")):
        micro = []
        for part in (0.0, 1.0):
            with accelerator.accumulate(model):
                loss = (model(torch.ones(1, 2)) - target - part).square().sum()
                micro.append(loss.item())
                accelerator.backward(loss)
                if not part:
                    optimizer.step()
        if fate == "overflows":
            model.bias.grad = torch.tensor([torch.inf])
        else:
            seen.append(sum(micro) / 2)
        if fate == "raises":
            model.weight.grad = model.weight.grad.to_sparse()
            with pytest.raises(RuntimeError, match="sparse"):
                optimizer.step()
            accelerator.scaler.update()  # which it could not do any more
            assert handle.emotion.coefficient != 1.0
        else:
            optimizer.step()
            assert optimizer.step_was_skipped == (fate == "overflows")
            assert inner.param_groups[0]["lr"] == 0.5
        optimizer.zero_grad()
        assert inner.param_groups[0]["lr"] == 0.5
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.25
    short = seen[0]
    for loss in seen[1:]:
        short = 0.3 * loss + 0.7 * short
    assert handle.emotion.short == pytest.approx(short)
    assert (handle.emotion.observations, handle.emotion.skipped) == (4, 1)
