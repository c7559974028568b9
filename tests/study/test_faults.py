"""Faults on purpose, the guards against them, and the tasks that have no data of their own in the tests."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts" / "studies"
sys.path.insert(0, str(SCRIPTS))

import faults
import flow

from emo_hf.study.plan import Plan
from emo_hf.study.run_one import perform
from tests.study.studies import ARMS, FUNCTION, study

FAULTS = str(SCRIPTS / "faults.py")
STEPS = 120


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    import emo_hf

    yield
    emo_hf.unregister()


def run(arm: Mapping[str, Any], rate: float = 3e-3, **task: Any) -> Mapping[str, Any]:
    function = f"{FAULTS}:with_faults" if task else FUNCTION
    options = {"task": FUNCTION, **task} if task else {}
    small = study(
        tasks={"toy": {"function": function, "steps": STEPS, **options}}, arms={**ARMS, "tried": arm}, evaluations=1
    )
    first = Plan(small, {}).first_run(small.tasks["toy"], small.arms["tried"])
    return perform(dataclasses.replace(first, rate=rate))


def end(line: Mapping[str, Any]) -> float | None:
    return line["curves"]["weights"]["judge"][-1][1]


PLAIN = {"optim": "adamw_torch", "lr_scheduler_type": "constant"}


def test_faults_come_after_a_quiet_start_one_in_each_part_and_the_same_for_a_seed() -> None:
    begins = faults.begin_at(600, 20, 1, 3)
    assert begins == faults.begin_at(600, 20, 1, 3)
    assert begins != faults.begin_at(600, 20, 1, 4)
    assert len(begins) == 20
    assert all(60 + 27 * i < begin <= 60 + 27 * (i + 1) for i, begin in enumerate(begins))
    with pytest.raises(ValueError, match="20 faults of 20 steps do not fit into the last 90 of 100 steps"):
        faults.begin_at(100, 20, 20, 3)


def test_the_steps_between_faults_are_those_of_the_run_without() -> None:
    clean, poisoned = run(PLAIN), run(PLAIN, kind="poisoned", count=3)
    assert poisoned["fingerprint"] == clean["fingerprint"]
    first = faults.begin_at(STEPS, 3, 1, 1)[0]
    losses = [[loss for _, loss in line["losses"]] for line in (clean, poisoned)]
    thin = math.ceil(STEPS / len(losses[0]))
    assert losses[0][: (first - 1) // thin] == losses[1][: (first - 1) // thin]
    assert losses[0] != losses[1]
    assert max(losses[1]) > 10 * max(losses[0])  # 50 times, in a mean of two steps
    assert clean["extra"] is None
    assert poisoned["extra"]["faults"] == 3
    assert poisoned["extra"]["clean_steps"] == STEPS - 3 * 6


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_gradient_that_is_not_finite_is_fatal_without_a_guard_and_left_out_with_one(kind: str) -> None:
    assert end(run({**PLAIN, "max_grad_norm": 0}, kind=kind, count=3)) is None
    for arm in (
        {**PLAIN, "max_grad_norm": 0, "callback": f"{FAULTS}:ZClip"},
        {**PLAIN, "max_grad_norm": 0, "callback": f"{FAULTS}:SkipHigh"},
        {**PLAIN, "emotion": "settle"},
    ):
        line = run(arm, kind=kind, count=3)
        assert end(line) is not None
        assert line["extra"]["faults_left_out"] == line["extra"]["faults"] == 3, arm


def test_a_rate_is_raised_for_its_steps_and_no_schedule_sees_it() -> None:
    clean, raised = run({"optim": "sgd"}), run({"optim": "sgd"}, kind="rate", count=2)
    assert raised["extra"]["faults"] == 40
    assert end(raised) != end(clean)
    again = run({"optim": "sgd"}, rate=3e-3)
    assert end(again) == end(clean)


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of poisoned, nan, inf, rate, got 'cosmic'"):
        run(PLAIN, kind="cosmic")


def test_zclip_clips_what_is_far_above_by_the_formula_of_the_paper() -> None:
    guard = faults.ZClip()
    norms = [1.0 + 0.1 * math.sin(i) for i in range(faults.WARM_UP)]
    assert [guard.factor(norm) for norm in norms] == [1.0] * faults.WARM_UP
    mean, variance = guard.mean, guard.variance
    assert mean == pytest.approx(sum(norms) / len(norms))
    z = (5.0 - mean) / math.sqrt(variance)
    clipped = mean + 2.5**2 / z * math.sqrt(variance)
    assert guard.factor(5.0) == pytest.approx(clipped / 5.0)
    assert guard.mean == pytest.approx(0.97 * mean + 0.03 * clipped)
    assert guard.variance == pytest.approx(0.97 * variance + 0.03 * (clipped - guard.mean) ** 2)
    assert guard.factor(1.0) == 1.0


def test_the_plainest_guard_leaves_out_three_times_the_mean_and_forgets_it() -> None:
    guard = faults.SkipHigh()
    assert [guard.factor(1.0) for _ in range(faults.WARM_UP)] == [1.0] * faults.WARM_UP
    assert guard.factor(3.1) is None
    assert guard.factor(2.9) == 1.0
    assert faults.SkipHigh().factor(100.0) == 1.0  # nothing is usual yet


def test_the_norm_is_that_of_all_gradients() -> None:
    parts = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert faults.global_norm(parts) == pytest.approx(5.0)
    assert faults.global_norm([]) == 0.0


def test_a_guard_clips_the_gradients_that_the_step_is_taken_with() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    guard = faults.ZClip()
    for _ in range(faults.WARM_UP):
        guard.factor(1.0)
    model.weight.grad = torch.full_like(model.weight, 100.0)
    guard.on_pre_optimizer_step(None, None, None, model=model)
    assert model.weight.grad is not None
    assert model.weight.grad.item() == pytest.approx(1.0)
    assert not model.left_out_by_guard
    model.weight.grad = torch.full_like(model.weight, math.nan)
    guard.on_pre_optimizer_step(None, None, None, model=model)
    assert model.weight.grad is None
    assert model.left_out_by_guard


def test_flow_matching_learns_the_checkerboard_and_judges_by_points_of_its_own() -> None:
    torch.manual_seed(0)
    task = flow.checkerboard(0, batch=256)
    first = {half: task.evaluate(task.model, half)["loss"] for half in ("tune", "judge")}
    assert first["tune"] != first["judge"]
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for batch in task.train_batches(0):
        optimizer.zero_grad()
        task.loss(task.model, batch).backward()
        optimizer.step()
    with torch.no_grad():
        assert task.evaluate(task.model, "judge")["loss"] < 0.9 * first["judge"]
    points = next(iter(task.train_batches(1)))[0]
    column, row = (points.floor() + 2).long().T
    assert ((column + row) % 2 == 0).all()
