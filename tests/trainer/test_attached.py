"""An emotion for the optimizers of others in the Trainer and in loops of accelerate."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.optim import lr_scheduler
from transformers import TrainerCallback

import emo_hf
from emo_hf import EmoCallback, EmoEarlyStoppingCallback, attach
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import make_law
from emo_hf.optim.attachment import Attachment
from emo_hf.trainer.self_stop import SelfStop
from tests import tiny
from tests.emo_cases import assert_identical

NEEDS = {
    "adamw_8bit": "bitsandbytes", "adamw_torch_8bit": "torchao", "schedule_free_adamw": "schedulefree",
    "galore_adamw": "galore_torch", "apollo_adamw": "apollo_torch",
}  # fmt: skip
OPTIMIZERS = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", *NEEDS]
LIVELY = {"learning_rate": 3e-3, "num_train_epochs": 8}  # the loss falls fast enough for the emotion to act

each_optimizer = pytest.mark.parametrize("optim", OPTIMIZERS)


def trainer(folder: Path, *, optim: str = "adamw_torch", callbacks: Any = (), **changes: Any) -> Any:
    if optim in NEEDS and importlib.util.find_spec(NEEDS[optim]) is None:
        pytest.skip(f"{NEEDS[optim]} is not installed")
    if optim == "sgd":
        changes["learning_rate"] = 100 * changes.get("learning_rate", 1e-3)
    if optim in ("galore_adamw", "apollo_adamw"):
        changes["optim_target_modules"] = ["query", "value"]
    return tiny.trainer(folder, optim=optim, callbacks=list(callbacks), **changes)


def weights(made: Any) -> list[torch.Tensor]:
    return [param.detach().clone() for param in made.model.parameters()]


class Steps(TrainerCallback):
    """Notes the rates that schedulers see, and the factors."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.factors: list[float] = []

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs) -> None:
        self.rates.append(float(lr_scheduler.get_last_lr()[0]))
        emotion = unwrap(optimizer)
        self.factors.append(1.0 if emotion is None else emotion.emotion.coefficient)


class ByHand(TrainerCallback):
    """What the emotion should do: the rates multiplied around each step."""

    def __init__(self, factors: list[float]) -> None:
        self.factors = iter(factors)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        factor = next(self.factors)
        self.plain = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        for group, lr in zip(optimizer.param_groups, self.plain, strict=True):
            group["lr"] = lr


@each_optimizer
def test_a_trainers_optimizer_is_scaled_by_the_losses_that_the_trainer_logs(optim: str, tmp_path: Path) -> None:
    felt, steps = tiny.Felt(), Steps()
    made = trainer(tmp_path, optim=optim, callbacks=[EmoCallback(emotion="v3.6"), felt, steps], **LIVELY)
    made.train()
    lines = tiny.train_lines(made)
    assert felt.losses == [line["loss"] for line in lines]
    law = make_law("v3.6", "v3.1", {})
    factors = [law.feel(loss).coefficient for loss in felt.losses]
    assert steps.factors == factors
    assert any(factor > 2.0 for factor in factors)
    for line in lines:
        assert line["emo/effective_lr"] == pytest.approx(line["learning_rate"] * line["emo/coefficient"], rel=1e-5)

    plain = Steps()
    by_hand = trainer(tmp_path, optim=optim, callbacks=[plain, ByHand(factors)], **LIVELY)
    by_hand.train()
    assert steps.rates == plain.rates
    assert_identical(weights(made), weights(by_hand))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_micro_batches_are_one_loss(accumulation: int, tmp_path: Path) -> None:
    felt = tiny.Felt()
    made = trainer(
        tmp_path, callbacks=[EmoCallback(emotion="v3.1"), felt], gradient_accumulation_steps=accumulation, **LIVELY
    )
    made.train()
    lines = tiny.train_lines(made)
    assert felt.losses == [line["loss"] for line in lines]
    assert len(lines) == made.state.global_step == 8 * -(-10 // accumulation)


# Checkpoints


class AtBegin(TrainerCallback):
    """Notes the emotion that training begins with."""

    emotion: Any = None

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.emotion = unwrap(optimizer).emotion


SAVING = {**LIVELY, "save_strategy": "steps", "save_steps": 45, "save_total_limit": 2}


def resumed(folder: Path, optim: str = "adamw_torch", **arguments: Any) -> tuple[Any, AtBegin]:
    begin = AtBegin()
    made = trainer(folder, optim=optim, callbacks=[EmoCallback(**({"emotion": "v3.6"} | arguments)), begin], **SAVING)
    made.train(resume_from_checkpoint=str(folder / "checkpoint-45"))
    return made, begin


@pytest.mark.parametrize("optim", [name for name in OPTIMIZERS if name not in ("galore_adamw", "apollo_adamw")])
def test_a_resumed_run_ends_as_the_one_that_was_not_interrupted(
    optim: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trainer(tmp_path, optim=optim, callbacks=[EmoCallback(emotion="v3.6")], **SAVING)
    whole.train()
    again, begin = resumed(tmp_path, optim)
    assert begin.emotion.observations == 45
    assert_identical(weights(again), weights(whole))
    assert unwrap(again.optimizer).emotion == unwrap(whole.optimizer).emotion
    ours = [record.message for record in caplog.records if record.name.startswith("emo_hf")]
    assert not ours


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """A run that saved at step 45 of 80, in `tmp_path`."""
    made = trainer(tmp_path, callbacks=[EmoCallback(emotion="v3.6")], **SAVING)
    made.train()
    return made


def forget_the_emotion(folder: Path) -> None:
    """As FSDP loads: nothing that the optimizer has no place for yet."""
    file = folder / "checkpoint-45" / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    for group in state["param_groups"]:
        del group["emotion"]
    torch.save(state, file)


def test_an_emotion_that_the_optimizer_could_not_load_is_read_from_the_trainers_state(
    checkpoint: Any, tmp_path: Path
) -> None:
    forget_the_emotion(tmp_path)
    again, begin = resumed(tmp_path)
    assert begin.emotion.observations == 45
    assert_identical(weights(again), weights(checkpoint))
    assert unwrap(again.optimizer).emotion == unwrap(checkpoint.optimizer).emotion


def test_notes_of_another_step_are_not_taken_for_its_emotion(
    checkpoint: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a run that went on without an emotion are stale."""
    forget_the_emotion(tmp_path)
    file = tmp_path / "checkpoint-45" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["emo_hf"]["step"] = 40
    file.write_text(json.dumps(state))
    _, begin = resumed(tmp_path)
    assert begin.emotion.observations == 0
    assert "The checkpoint of step 45 holds no emotion: it starts afresh." in caplog.text


def test_a_checkpoint_of_another_law_is_refused_with_both_names(checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"follows the law 'v3.6', the one attached here 'v3.1'.*emotion='v3.6'"):
        resumed(tmp_path, emotion="v3.1")
    forget_the_emotion(tmp_path)
    with pytest.raises(ValueError, match=r"follows the law 'v3.6', the one attached here 'v3.1'"):
        resumed(tmp_path, emotion="v3.1")


def test_a_run_without_an_emotion_goes_on_from_a_checkpoint_with_one(checkpoint: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path, callbacks=[EmoCallback()], **SAVING)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-45"))
    assert made.state.global_step == 80
    assert unwrap(made.optimizer) is None


# Self-stop


class FlatFrom(TrainerCallback):
    """Holds the weights still from a step on, so that the loss goes flat for good."""

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        if state.global_step >= 3:
            for group in optimizer.param_groups:
                group["lr"] = 0.0


FLAT = {
    "data": tiny.examples(4) * 100, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential",
    "logging_steps": 20,
}  # fmt: skip
EAGER = {"patience": 1, "min_steps": 10}


def flat_run(folder: Path, callbacks: list[Any], **changes: Any) -> int:
    made = trainer(folder, model=tiny.classifier(dropout=0.0), callbacks=[*callbacks, FlatFrom()], **FLAT, **changes)
    made.train()
    return int(made.state.global_step)


@pytest.mark.parametrize("action", ["stop", "log"])
def test_training_that_has_gone_flat_is_stopped_or_only_said(
    action: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = flat_run(tmp_path, [EmoCallback(emotion="v3.1", self_stop=SelfStop(action=action, **EAGER))])
    assert 42 <= steps < 100 if action == "stop" else steps == 100
    assert caplog.text.count("Training has been flat") == 1


@pytest.mark.parametrize("order", ["before", "after"])
def test_early_stopping_watches_an_attached_optimizer_whichever_callback_comes_first(
    order: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callbacks = [EmoEarlyStoppingCallback(**EAGER), EmoCallback(emotion="v3.1", self_stop=SelfStop(action="off"))]
    steps = flat_run(tmp_path, callbacks if order == "before" else callbacks[::-1])
    assert 42 <= steps < 100
    assert "nothing to watch" not in caplog.text


def test_early_stopping_without_an_emotion_says_once_that_there_is_nothing_to_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert flat_run(tmp_path, [EmoEarlyStoppingCallback(**EAGER), EmoCallback()]) == 100
    assert caplog.text.count("nothing to watch: the optimizer is AdamW,") == 1


# Every Trainer


def test_registering_an_emotion_gives_it_to_every_trainer_until_it_is_taken_back(tmp_path: Path) -> None:
    emo_hf.register(emotion="v3.0")
    made = trainer(tmp_path)
    made.train()
    assert unwrap(made.optimizer).emotion.law == "v3.0"
    assert tiny.train_lines(made)[-1]["emo/observations"] == 10
    emo_hf.unregister()
    made = trainer(tmp_path)
    made.train()
    assert unwrap(made.optimizer) is None


def test_an_emo_optimizer_keeps_its_own_law_and_self_stop(tmp_path: Path) -> None:
    emo_hf.register(emotion="v3.0")
    args = "self_stop=stop,self_stop_patience=1,self_stop_min_steps=10"
    assert 42 <= flat_run(tmp_path, [], optim="emonavi", optim_args=args, learning_rate=1e-5) < 100
    made = trainer(tmp_path, optim="emonavi")
    made.train()
    assert not isinstance(unwrap(made.optimizer), Attachment)
    assert unwrap(made.optimizer).emotion.law == "v3.1"


def test_an_emotion_that_the_user_attached_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = attach(optimizer, "v3.0")
    made = trainer(tmp_path, model=model, optimizers=(optimizer, None), callbacks=[EmoCallback(emotion="v3.1")])
    made.train()
    assert unwrap(made.optimizer) is handle
    assert tiny.train_lines(made)[-1]["emo/observations"] == handle.emotion.observations == 10
    assert "has an emotion of the law v3.0 already" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"emotion": "v9"}, ValueError, "emo_law must be one of .* got 'v9'"),
        ({"emotion": "v3.1", "stopcoef": 1}, TypeError, "the law v3.1 has no option stopcoef"),
        ({"sync": "local"}, ValueError, "was given sync but no emotion that this is for: name a law"),
        ({"self_stop": SelfStop()}, ValueError, "was given self_stop but no emotion"),
    ],
)
def test_wrong_arguments_are_refused_before_training(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        EmoCallback(**arguments)


def test_options_of_the_law_and_sync_reach_the_attached_emotion(tmp_path: Path) -> None:
    callback = EmoCallback(emotion="v3.9", stopcoef=0.5, sync="local")
    made = trainer(tmp_path, callbacks=[callback], learning_rate=1.0)
    made.train()
    handle = unwrap(made.optimizer)
    assert handle.emo_sync == "local"
    assert handle._engine.law.stopcoef == 0.5


# accelerate


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("order", ["attach, prepare", "prepare, attach"])
def test_the_tap_feeds_what_is_attached_with_accumulation(order: str, fresh_accelerate: None) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    if order == "attach, prepare":
        handle = attach(inner)
        model, optimizer = accelerator.prepare(model, inner)
    else:
        model, optimizer = accelerator.prepare(model, inner)
        handle = attach(optimizer)
    for target in (9.0, 2.0, 1.0):
        for part in (0.0, 1.0, 2.0):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.ones(1, 3)).sum() * 0.1 + target + part)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        assert inner.param_groups[0]["lr"] == 0.5
    assert handle.emotion.observations == 3
    assert handle.emotion.skipped == 0
    assert handle.emotion.coefficient != 1.0
    assert handle.emotion.short == pytest.approx(0.3 * 2.0 + 0.7 * (0.3 * 3.0 + 0.7 * 10.0), rel=0.05)


@pytest.mark.parametrize("order", ["attach, prepare", "prepare, attach"])
def test_with_a_gradient_scaler_skipped_steps_take_their_loss_along_and_rates_come_back(
    order: str, fresh_accelerate: None
) -> None:
    """accelerate puts the step() that it prepared in the place of the present one, at every step."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # as mixed_precision="fp16" has it on a GPU
    model = nn.Linear(2, 1)
    inner = torch.optim.AdamW(model.parameters(), lr=0.5)
    scheduler = lr_scheduler.ExponentialLR(inner, 0.5)
    handle = attach(inner) if order == "attach, prepare" else None
    optimizer = accelerator.prepare(inner)
    handle = handle or attach(inner)
    seen = []
    for target, fate in ((1.0, ""), (50.0, "overflows"), (20.0, ""), (2.0, "raises"), (2.0, "")):
        loss = (model(torch.ones(1, 2)) - target).square().sum()
        accelerator.backward(loss)
        if fate == "overflows":
            model.bias.grad = torch.tensor([torch.inf])
        else:
            seen.append(loss.item())
        if fate == "raises":
            model.weight.grad = model.weight.grad.to_sparse()
            with pytest.raises(RuntimeError, match="sparse"):
                optimizer.step()
            assert handle.emotion.coefficient != 1.0
        else:
            optimizer.step()
            assert optimizer.step_was_skipped == (fate == "overflows")
            assert inner.param_groups[0]["lr"] == 0.5
        optimizer.zero_grad()
        assert inner.param_groups[0]["lr"] == 0.5
        if fate == "raises":
            accelerator.scaler.update()  # which it could not do any more
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.25
    short = seen[0]
    for loss in seen[1:]:
        short = 0.3 * loss + 0.7 * short
    assert handle.emotion.short == pytest.approx(short)
    assert (handle.emotion.observations, handle.emotion.skipped) == (4, 1)
