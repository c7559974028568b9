"""NaN and infinite losses, and steps that overflow, through the Trainer and accelerate: the emotion survives them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from emo_hf import EmoNavi
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.v3_1 import V3_1
from tests import tiny

pytestmark = pytest.mark.usefixtures("registered")


def trainer_with_bad_steps(folder: Path, bad: dict[int, float], **changes: Any) -> Any:
    """A run of 10 batches, to the losses of some of which something is added; their gradients stay what they are."""
    seen = iter(range(1000))

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        good = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return good + bad.get(next(seen), 0.0)

    return tiny.trainer(folder, compute_loss_func=loss, **changes)


@pytest.mark.parametrize(
    ("bad", "value", "nan_inf_filter", "accumulation", "bad_steps"),
    [([0, 1, 2, 7], -math.inf, True, 1, {0, 1, 2, 7}), (list(range(10)), math.nan, False, 1, set(range(10))),
     ([4], math.nan, True, 3, {1})],
    ids=["some", "all", "one micro-batch"],
)  # fmt: skip
def test_bad_losses_are_counted_and_logged_and_the_next_good_one_goes_on(
    bad: list[int], value: float, nan_inf_filter: bool, accumulation: int, bad_steps: set[int], tmp_path: Path
) -> None:
    trainer = trainer_with_bad_steps(
        tmp_path, dict.fromkeys(bad, value), logging_nan_inf_filter=nan_inf_filter,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert len(lines) == math.ceil(10 / accumulation)
    for number, line in enumerate(lines):
        assert line["emo/skipped"] == sum(step <= number for step in bad_steps)
        assert line["emo/observations"] == number + 1 - line["emo/skipped"]
        assert all(math.isfinite(value) for key, value in line.items() if key.startswith("emo/"))
        assert line["emo/effective_lr"] == pytest.approx(line["learning_rate"] * line["emo/coefficient"], rel=1e-12)
        if number in bad_steps:
            assert line["emo/coefficient_min"] == line["emo/coefficient_max"] == 1.0, "the step is a neutral one"
            assert nan_inf_filter == math.isfinite(line["loss"])


def test_a_bad_loss_leaves_no_trace_but_its_count_and_that_survives_a_resume(tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "constant"}
    whole = trainer_with_bad_steps(tmp_path, {2: -1.0, 3: math.nan}, **changes)
    whole.train()
    lines = tiny.train_lines(whole)
    assert lines[2]["emo/coefficient"] not in (0.0, 1.0)
    assert [lines[3][f"emo/{name}"] for name in ("coefficient", "scalar", "effective_lr")] == [1.0, 0.0, 1e-3]
    alone = V3_1()
    for line in lines:
        if line["step"] != 4:
            alone.feel(line["loss"])
    felt = unwrap(whole.optimizer).emotion
    assert (felt.short, felt.long, felt.skipped) == (pytest.approx(alone.short), pytest.approx(alone.long), 1)
    resumed = trainer_with_bad_steps(tmp_path, {}, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert unwrap(resumed.optimizer).emotion == felt


@pytest.mark.parametrize(("overflows", "accumulation"), [({0, 1, 2, 5}, 1), (set(range(8)), 2)])
def test_steps_that_a_real_gradient_scaler_skips_take_their_losses_along(
    overflows: set[int], accumulation: int
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    made = EmoNavi(model.parameters(), lr=0.01)
    batches = torch.utils.data.TensorDataset(torch.ones(8 * accumulation, 2))
    model, optimizer, loader = accelerator.prepare(model, made, torch.utils.data.DataLoader(batches))
    optimizer.scaler = accelerator.scaler
    weights = [model.weight.detach().clone()]
    for number, (batch,) in enumerate(loader):
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean() + 1.0)
            if number // accumulation in overflows:
                for param in model.parameters():
                    param.grad.mul_(torch.inf)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            weights.append(model.weight.detach().clone())
    assert (made.emotion.observations, made.emotion.skipped) == (8 - len(overflows), len(overflows))
    assert math.isfinite(made.emotion.short)
    assert all(weight.isfinite().all() for weight in weights)
    stood = {step for step in range(8) if torch.equal(weights[step], weights[step + 1])}
    assert stood == overflows
