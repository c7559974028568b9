"""NaN and infinite losses, and steps that overflow, through the Trainer and accelerate: the emotion survives them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import emo_hf
from emo_hf import EmoNavi
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.v3_1 import V3_1
from tests import tiny


@pytest.fixture(autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


def trainer_with_bad_steps(folder: Path, bad: dict[int, float], **changes: Any):
    """A run of 10 steps, in which the losses of some micro-batches are bad and take their gradients along."""
    seen = iter(range(1000))

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        good = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        # Added, so that the gradients stay what they are: what is at stake here is the emotion.
        return good + bad.get(next(seen), 0.0)

    return tiny.trainer(folder, compute_loss_func=loss, **changes)


@pytest.mark.parametrize(
    ("bad_steps", "value", "nan_inf_filter"),
    [([0], math.nan, True), ([4], math.inf, False), ([0, 1, 2, 3, 7, 8], -math.inf, True),
     (list(range(10)), math.nan, False)],
)  # fmt: skip
def test_bad_losses_are_counted_and_logged_and_the_next_good_one_goes_on(
    bad_steps: list[int], value: float, nan_inf_filter: bool, tmp_path: Path
) -> None:
    trainer = trainer_with_bad_steps(tmp_path, dict.fromkeys(bad_steps, value), logging_nan_inf_filter=nan_inf_filter)
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert len(lines) == 10
    for number, line in enumerate(lines):
        assert line["emo/skipped"] == sum(step <= number for step in bad_steps)
        assert line["emo/observations"] == number + 1 - line["emo/skipped"]
        assert all(math.isfinite(value) for key, value in line.items() if key.startswith("emo/"))
        assert line["emo/effective_lr"] == pytest.approx(line["learning_rate"] * line["emo/coefficient"], rel=1e-12)
        if number in bad_steps:
            assert line["emo/coefficient"] == 1.0, "the step is a neutral one"
            assert line["emo/coefficient_min"] == line["emo/coefficient_max"] == 1.0
            assert nan_inf_filter == math.isfinite(line["loss"])
    assert all(param.isfinite().all() for param in trainer.model.parameters())


def test_one_bad_micro_batch_makes_its_step_a_neutral_one_and_no_other(tmp_path: Path) -> None:
    trainer = trainer_with_bad_steps(tmp_path, {4: math.nan}, gradient_accumulation_steps=3)
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert [line["emo/skipped"] for line in lines] == [0, 1, 1, 1]
    assert [line["emo/observations"] for line in lines] == [1, 1, 2, 3]


def test_a_bad_loss_leaves_the_emotion_as_if_that_step_had_not_been(tmp_path: Path) -> None:
    trainer = trainer_with_bad_steps(tmp_path, {4: math.inf})
    trainer.train()
    emotion = V3_1()
    for line in tiny.train_lines(trainer):
        if line["step"] != 5:
            emotion.feel(line["loss"])
    felt = unwrap(trainer.optimizer).emotion
    assert felt.short == pytest.approx(emotion.view().short, rel=1e-6)
    assert felt.long == pytest.approx(emotion.view().long, rel=1e-6)


def test_the_log_line_of_a_bad_loss_says_what_its_step_was_taken_with(tmp_path: Path) -> None:
    trainer = trainer_with_bad_steps(tmp_path, {2: -1.0, 3: math.nan}, lr_scheduler_type="constant")
    trainer.train()
    before, bad = tiny.train_lines(trainer)[2:4]
    assert before["emo/coefficient"] not in (0.0, 1.0)
    assert (bad["emo/coefficient"], bad["emo/scalar"], bad["emo/effective_lr"]) == (1.0, 0.0, 1e-3)


def test_bad_losses_and_their_place_survive_a_resume(tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 5}
    whole = trainer_with_bad_steps(tmp_path, {2: math.nan}, **changes)
    whole.train()
    resumed = trainer_with_bad_steps(tmp_path, {}, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert unwrap(resumed.optimizer).emotion == unwrap(whole.optimizer).emotion
    assert unwrap(resumed.optimizer).emotion.skipped == 1


def overflowing_loop(overflows: set[int], steps: int = 8, accumulation: int = 1) -> tuple[EmoNavi, list[list[float]]]:
    """An accelerate loop with a real GradScaler on the CPU whose gradients overflow at some steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    made = EmoNavi(model.parameters(), lr=0.01)
    batches = torch.utils.data.TensorDataset(torch.ones(steps * accumulation, 2))
    model, optimizer, loader = accelerator.prepare(model, made, torch.utils.data.DataLoader(batches))
    optimizer.scaler = accelerator.scaler
    weights = []
    for number, (batch,) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = model(batch).square().mean() + 1.0
            accelerator.backward(loss)
            if number // accumulation in overflows:
                for param in model.parameters():
                    param.grad.mul_(torch.inf)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            weights.append(model.weight.detach().flatten().tolist())
    return made, weights


@pytest.mark.parametrize(("overflows", "accumulation"), [({0}, 2), ({0, 1, 2, 5}, 1), (set(range(8)), 2)])
def test_steps_that_a_real_gradient_scaler_skips_take_their_losses_along(
    overflows: set[int], accumulation: int
) -> None:
    optimizer, weights = overflowing_loop(overflows, accumulation=accumulation)
    emotion = optimizer.emotion
    assert (emotion.observations, emotion.skipped) == (8 - len(overflows), len(overflows))
    assert math.isfinite(emotion.short)
    assert all(map(math.isfinite, weights[-1]))
    for step in range(1, 8):
        moved = weights[(step + 1) * accumulation - 1] != weights[step * accumulation - 1]
        assert moved == (step not in overflows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_under_clipping_do_not_reach_the_emotion(value: float) -> None:
    """Without a scaler nobody skips the step: the weights are lost, as with any optimizer, and the emotion is not."""
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = EmoNavi([param])
    for loss in (2.0, 1.9, 1.8):
        optimizer.observe(loss)
        param.grad = torch.tensor([value, 1.0]) if loss == 1.9 else torch.ones(2)
        torch.nn.utils.clip_grad_norm_([param], 1.0)
        optimizer.step()
    assert (optimizer.emotion.observations, optimizer.emotion.skipped) == (3, 0)
    assert math.isfinite(optimizer.emotion.scalar)


@pytest.mark.parametrize(
    "losses",
    [[-3.0, -3.5, -4.0] * 30, [0.5, -0.5, -1.0] * 30, [-(1.1**step) for step in range(60)]],
    ids=["below zero", "around zero", "falling without an end"],
)
def test_the_robust_law_does_not_recommend_itself(losses: list[float]) -> None:
    def train(law: str) -> list[str]:
        optimizer = EmoNavi([torch.nn.Parameter(torch.ones(1))], emo_law=law)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for loss in losses:
                optimizer.observe(loss)
                optimizer.step()
        return [str(warning.message) for warning in caught]

    (advice,) = train("v3.1")
    assert "emo_law='robust'" in advice
    assert train("robust") == []


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e-30, torch.float32), (1e30, torch.float64), (1e-6, torch.bfloat16), (1e6, torch.float16)],
)
def test_very_small_and_very_large_losses_keep_the_decision_finite(scale: float, dtype: torch.dtype) -> None:
    for law in ("v3.1", "robust"):
        optimizer = EmoNavi([torch.nn.Parameter(torch.ones(1))], emo_law=law)
        for loss in (1.0, 0.9, 1.2, 0.5):
            optimizer.observe(torch.tensor([[loss * scale]], dtype=dtype))
            optimizer.step()
        emotion = optimizer.emotion
        assert emotion.observations + emotion.skipped == 4
        assert math.isfinite(emotion.scalar)
        assert 0.0 <= emotion.coefficient <= 1.625
