"""Which runs come next: the rates of each arm, fresh seeds, and what two studies have in common."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from emo_hf.study.plan import Plan, Run, end_of, half_decades, loss_at_rate, next_rates, rate_of
from emo_hf.study.task import JUDGE, TUNE
from tests.study.studies import ARMS, CONSTANT, TASK, bowl, line, played, quarter, study


def tuned_rates(loss: Any, near: int | None = None) -> dict[int, float]:
    """All rates that are run for an arm with this loss."""
    losses: dict[int, float] = {}
    while len(losses) < 99 and (missing := next_rates(losses, half_decades(1e-4, 1e-2), near)):
        assert not losses.keys() & set(missing)
        losses |= {number: loss(number) for number in missing}
    return losses


def test_rates_are_quarters_of_a_decade_and_half_decades_come_first() -> None:
    assert [rate_of(number) for number in (-12, -11, -10, -9, -8)] == [1e-3, 1.78e-3, 3.16e-3, 5.62e-3, 1e-2]
    assert list(half_decades(1e-4, 3e-3)) == [-16, -14, -12, -10]
    assert next_rates({}, half_decades(1e-4, 1e-2), None) == [-16, -14, -12, -10, -8]


@pytest.mark.parametrize("best", [-16, -13.4, -11, -5.2, -20])
def test_the_best_rate_lies_between_two_worse_ones_and_a_decade_around_it_is_known(best: float) -> None:
    losses = tuned_rates(lambda number: 1 + (number - best) ** 2, near=-3)
    found = min(losses, key=losses.__getitem__)
    assert found == round(best)
    assert {found - 1, found + 1} <= losses.keys()
    around = [*(found + away for away in (-4, -2, 2, 4)), -5, -3, -1]  # and around the reference's best
    assert all(not math.isnan(loss_at_rate(losses, at)) for at in around)
    if best == -11:
        assert loss_at_rate({-12: 1.0, -10: 2.0}, -11) == 1.5, "half-way between the rates beside it"
        assert math.isnan(loss_at_rate({-12: 1.0}, -11))


def test_a_search_for_a_better_rate_ends_two_decades_beyond_the_range() -> None:
    assert max(tuned_rates(lambda number: -number)) == -8 + 8, "ever better"
    assert tuned_rates(lambda number: math.inf).keys() == {*range(-24, -7, 2)}, "lost: lower rates are tried"


def test_fresh_seeds_follow_when_an_arm_is_tuned_and_a_rate_that_loses_a_tuning_seed_is_not_chosen() -> None:
    small = study(seeds={"tune": 2, "report": 3})
    plan = Plan(small, {})
    assert {run.phase for run in plan.open} == {TUNE}
    assert plan.later["toy"] > 0
    failed, *others = plan.open
    some = {run.key: line(run, 1.0) for run in others[:3]} | {failed.key: {"key": failed.key, "error": "it broke"}}
    assert {run.key for run in Plan(small, some).open} == {run.key for run in [failed, *others[3:]]}
    plan, lines = played(small, lambda run: None if run.seed == 2 and quarter(run) >= -8 else bowl(run, -8))
    assert plan.best == {("toy", "adamw"): -9, ("toy", "navi"): -9}
    assert (plan.open, plan.later) == ([], {"toy": 0})
    judged = [run for run in plan.runs() if run.phase == JUDGE and run.key in lines]
    assert {(run.arm.name, run.rate, run.seed) for run in judged} == {
        (arm, rate_of(-9), seed) for arm in ("adamw", "navi") for seed in (1001, 1002, 1003)
    }
    assert {run.seed for run in plan.runs() if run.phase == TUNE} == {1, 2}


def test_a_task_may_have_fewer_seeds_and_other_rates_or_those_of_another_and_an_arm_rates_of_its_own() -> None:
    arms = {**ARMS, "scale": {"optim": "emosens", "learning_rates": [0.1, 10]}}
    tasks = {
        "toy": {**TASK, "seeds": 2, "learning_rates": [1e-6, 1e-5]},
        "hard": {**TASK, "noise": 1.0, "rates_of": "toy"},
    }
    plan = Plan(study(arms=arms, tasks=tasks), {})
    rates = {arm: sorted(run.rate for run in plan.open if run.arm.name == arm) for arm in arms}
    assert rates["adamw"] == [1e-6, 3.16e-6, 1e-5]
    assert rates["scale"] == [0.1, 0.316, 1.0, 3.16, 10.0]
    _, lines = played(plan.study, lambda run: bowl(run, 0 if run.arm.name == "scale" else -22))
    fresh = {(found["task"], found["seed"]) for found in lines.values() if found["phase"] == JUDGE}
    assert fresh == {("toy", 1001), ("toy", 1002), ("hard", 1001), ("hard", 1002), ("hard", 1003)}
    assert {found["phase"] for found in lines.values() if found["task"] == "hard"} == {JUDGE}, "it is not tuned"
    assert {found["rate"] for found in lines.values() if found["task"] == "hard"} == {rate_of(-22), 1.0}


def test_weights_and_average_are_tuned_apart_and_share_the_runs_of_a_rate() -> None:
    arms = {"adamw": ARMS["adamw"], "flat": {**CONSTANT, "average": True}}
    small = study(arms=arms)
    plan, lines = played(small, lambda run: (bowl(run, -10), bowl(run, -9) - 0.1))
    assert plan.best["toy", "flat"] == -10
    assert plan.best["toy", "flat+average"] == -9
    assert len({(run.rate, run.seed) for run in plan.runs() if run.arm.name == "flat" and run.phase == JUDGE}) == 6
    of_average = plan.reported(small.tasks["toy"], small.judged["flat+average"])
    assert {found["rate"] for found in of_average} == {rate_of(-9)}
    assert {end_of(found, small.judged["flat+average"], JUDGE) for found in of_average} == {0.9}
    only = study(arms={**arms, "flat": {**arms["flat"], "average": "only"}})
    assert {name: judged.averaged for name, judged in only.judged.items()} == {"adamw": False, "flat": True}
    assert {run.key for run in Plan(only, lines).open} == set(), "and with a study that judges the average only"


def test_a_run_is_found_again_by_what_decides_its_result_and_not_by_its_name() -> None:
    first = Plan(study(), {}).open[0]
    again = Plan(study(arms={"other": ARMS["adamw"]}, reference="other"), {}).open[0]
    assert again.id != first.id
    assert again.key == first.key == dataclasses.replace(first, phase=JUDGE).key
    assert first.key == "47e555392d6d8a77", "as in every folder of runs that there is"
    for changes in (
        {"arms": {"adamw": {**ARMS["adamw"], "average": True}}},
        {"tasks": {"toy": {**TASK, "steps": 9}}},
        {"tasks": {"toy": {**TASK, "noise": 0.2}}},
        {"tasks": {"toy": {**TASK, "training": {"warmup_steps": 2}}}},
        {"arms": {**ARMS, "adamw": {**ARMS["adamw"], "weight_decay": 0.1}}},
        {"evaluations": 2},
    ):
        assert Plan(study(**changes), {}).open[0].key != first.key, changes
    json.dumps(first.config(), allow_nan=False)


@pytest.mark.parametrize(
    ("end", "chance", "lost"),
    [(1.0, None, False), (None, None, True), (2.0, None, True), (2.5, 9.0, True), (1.0, 0.9, True), (0.8, 0.9, False)],
)
def test_a_run_is_lost_that_ends_no_better_than_it_began_or_than_chance(
    end: float | None, chance: float | None, lost: bool
) -> None:
    small = study()
    found = line(Plan(small, {}).open[0], end, chance=chance)
    assert (end_of(found, small.judged["adamw"], JUDGE) == math.inf) == lost


def test_an_arm_that_stops_itself_is_judged_where_the_tuning_half_was_best() -> None:
    small = study(arms={**ARMS, "ends": {"optim": "adamw_torch", "emotion": "settle", "self_stop": "stop"}})
    run: Run = next(run for run in Plan(small, {}).open if run.arm.name == "ends")
    curves = {"tune": [[0, 2.0], [5, 0.5], [10, 0.7]], "judge": [[0, 2.0], [5, 0.6], [10, 0.55]]}
    found = line(run, 1.0, curves={"weights": curves})
    assert end_of(found, small.judged["ends"], JUDGE) == 0.6
    assert end_of(found, small.judged["adamw"], JUDGE) == 0.55
