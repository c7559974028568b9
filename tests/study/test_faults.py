"""Faults on purpose, the guards against them, and the task that has no data of its own."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
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
from tests.study.studies import CONSTANT, FUNCTION, study

FAULTS = str(SCRIPTS / "faults.py")
STEPS = 120


def run(arm: Mapping[str, Any] = CONSTANT, **task: Any) -> Mapping[str, Any]:
    function = {"function": f"{FAULTS}:with_faults", "task": FUNCTION, **task} if task else {"function": FUNCTION}
    small = study(tasks={"toy": {**function, "steps": STEPS}}, arms={"adamw": arm}, evaluations=1)
    return perform(dataclasses.replace(Plan(small, {}).open[0], rate=3e-3))


def test_faults_come_after_a_quiet_start_one_in_each_part_and_the_same_for_a_seed() -> None:
    begins = faults.begin_at(600, 20, 1, 3)
    assert begins == faults.begin_at(600, 20, 1, 3) != faults.begin_at(600, 20, 1, 4)
    assert len(begins) == 20
    assert all(60 + 27 * i < begin <= 60 + 27 * (i + 1) for i, begin in enumerate(begins))
    with pytest.raises(ValueError, match="20 faults of 20 steps do not fit into the last 90 of 100 steps"):
        faults.begin_at(100, 20, 20, 3)
    with pytest.raises(ValueError, match="kind must be one of poisoned, nan, inf, rate, got 'cosmic'"):
        run(kind="cosmic")


def test_the_steps_before_a_fault_are_those_of_the_run_without_and_each_kind_has_its_steps() -> None:
    clean, poisoned, raised = run(), run(kind="poisoned", count=3), run(kind="rate", count=2)
    assert clean["fingerprint"] == poisoned["fingerprint"] == raised["fingerprint"]
    losses = [[loss for _, loss in line["losses"]] for line in (clean, poisoned)]
    before = (faults.begin_at(STEPS, 3, 1, 1)[0] - 1) // math.ceil(STEPS / len(losses[0]))
    assert losses[0][:before] == losses[1][:before]
    assert max(losses[1]) > 10 * max(losses[0])  # 50 times, in a mean of two steps
    assert clean["extra"] is None
    assert (poisoned["extra"]["faults"], poisoned["extra"]["clean_steps"]) == (3, STEPS - 3 * 6)
    assert raised["extra"]["faults"] == 40, "20 steps at ten times the rate, twice"
    assert raised["curves"] != clean["curves"]


@pytest.mark.parametrize(
    ("kind", "guard"),
    [
        ("nan", {"callback": f"{FAULTS}:ZClip", "max_grad_norm": 0}),
        ("inf", {"callback": f"{FAULTS}:SkipHigh", "max_grad_norm": 0}),
        ("nan", {"emotion": "settle"}),
        ("inf", None),
    ],
)
def test_a_gradient_that_is_not_finite_is_fatal_without_a_guard_and_left_out_with_one(kind: str, guard: Any) -> None:
    line = run({**CONSTANT, **({"max_grad_norm": 0} if guard is None else guard)}, kind=kind, count=3)
    assert (line["curves"]["weights"]["judge"][-1][1] is None) == (guard is None)
    assert (line["extra"]["faults"], line["extra"]["faults_left_out"]) == (3, 0 if guard is None else 3)


def test_zclip_clips_what_is_far_above_by_the_formula_of_the_paper_before_the_step_is_taken() -> None:
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
    model, guard = torch.nn.Linear(1, 1, bias=False), faults.ZClip()
    for _ in range(faults.WARM_UP):
        guard.factor(1.0)
    model.weight.grad = torch.full_like(model.weight, 100.0)
    guard.on_pre_optimizer_step(None, None, None, model=model)
    assert model.weight.grad.item() == pytest.approx(1.0)
    assert not model.left_out_by_guard


def test_the_plainest_guard_leaves_out_three_times_the_mean_and_forgets_it() -> None:
    guard = faults.SkipHigh()
    assert [guard.factor(1.0) for _ in range(faults.WARM_UP)] == [1.0] * faults.WARM_UP
    assert (guard.factor(3.1), guard.factor(2.9)) == (None, 1.0)
    assert faults.SkipHigh().factor(100.0) == 1.0  # nothing is usual yet
    assert faults.global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == pytest.approx(5.0)


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
    column, row = (next(iter(task.train_batches(1)))[0].floor() + 2).long().T
    assert ((column + row) % 2 == 0).all()
