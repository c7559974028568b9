"""Guards against numbers that were worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from emo_hf.study.guards import GUARDS, WARM_UP, Guard, GuardCallback, SkipHigh, ZClip, global_norm
from emo_hf.study.study import GUARDS as NAMES


def zclip_that_knows(mean: float, deviation: float) -> ZClip:
    """After norms that lie as often one deviation above the mean as below it, and once at it."""
    guard = ZClip()
    for i in range(WARM_UP):
        assert guard.factor(mean if i == 0 else mean + deviation * math.sqrt(25 / 24) * (-1) ** i) == 1.0
    return guard


def test_a_study_knows_the_guards_that_there_are() -> None:
    assert tuple(GUARDS) == NAMES


def test_zclip_begins_with_mean_and_deviation_of_25_norms() -> None:
    guard = zclip_that_knows(2.0, 0.1)
    assert guard.mean == pytest.approx(2.0)
    assert guard.variance == pytest.approx(0.01)


def test_zclip_takes_a_norm_up_to_two_and_a_half_deviations_as_it_is() -> None:
    guard = zclip_that_knows(2.0, 0.1)
    assert guard.factor(2.2) == 1.0
    assert guard.mean == pytest.approx(0.97 * 2.0 + 0.03 * 2.2)  # 2.006
    assert guard.variance == pytest.approx(0.97 * 0.01 + 0.03 * (2.2 - 2.006) ** 2)


def test_zclip_brings_a_norm_of_ten_deviations_down_by_its_own_excess() -> None:
    guard = zclip_that_knows(2.0, 0.1)
    clipped = 2.0 + 2.5**2 / 10.0 * 0.1  # z = (3 − 2)/0.1 = 10: g* = 2.0625
    assert guard.factor(3.0) == pytest.approx(clipped / 3.0)
    assert guard.mean == pytest.approx(0.97 * 2.0 + 0.03 * clipped)  # what was clipped is what is learned
    assert guard.variance == pytest.approx(0.97 * 0.01 + 0.03 * (clipped - guard.mean) ** 2)


def test_zclip_needs_no_deviation_above_zero() -> None:
    guard = zclip_that_knows(2.0, 0.0)
    assert guard.factor(4.0) == pytest.approx(0.5)  # down to the mean
    assert zclip_that_knows(0.0, 0.0).factor(0.0) == 1.0


def test_skip_leaves_out_what_is_above_three_times_the_mean_of_those_it_took() -> None:
    guard = SkipHigh()
    for i in range(WARM_UP):
        assert guard.factor(1.0 if i % 2 else 3.0) == 1.0  # mean 51/25 = 2.04
    assert guard.factor(6.13) is None
    assert guard.factor(6.11) == 1.0
    assert guard.factor(6.2) == 1.0  # now the mean is 57.11/26; the one that was skipped is not in it


def test_skip_looks_back_on_a_hundred_norms() -> None:
    guard = SkipHigh()
    for norm in [10.0] * 30 + [1.0] * 100:
        guard.factor(norm)
    assert guard.factor(3.01) is None


@pytest.mark.parametrize("guard", [ZClip(), SkipHigh()], ids=["zclip", "skip"])
@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_skipped_from_the_first_step_on_and_not_remembered(
    guard: Guard, norm: float
) -> None:
    assert guard.factor(norm) is None
    assert guard.factor(1.0) == 1.0
    assert all(math.isfinite(value) for value in (getattr(guard, "mean", 0.0), getattr(guard, "variance", 0.0)))


class Halves(Guard):
    """Halves every gradient."""

    def _of_finite(self, norm: float) -> float:
        return 0.5


def guarded(gradient: float, folder: str) -> tuple[GuardCallback, torch.nn.Linear]:
    model, callback = torch.nn.Linear(2, 1), GuardCallback(Halves())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none")
    callback.on_pre_optimizer_step(arguments, TrainerState(), TrainerControl(), model=model)
    return callback, model


def test_gradients_are_multiplied_by_what_the_guard_says_and_gone_where_it_skips(tmp_path: str) -> None:
    callback, model = guarded(4.0, str(tmp_path))
    assert not callback.skips
    assert [parameter.grad.tolist() for parameter in model.parameters() if parameter.grad is not None] == [
        [[2.0, 2.0]],
        [2.0],
    ]
    callback, model = guarded(math.nan, str(tmp_path))
    assert callback.skips
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_norm_is_that_of_all_gradients_together() -> None:
    assert global_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]) == pytest.approx(5.0)
    assert global_norm([]) == 0.0
