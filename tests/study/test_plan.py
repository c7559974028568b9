"""Which runs come next: the rates of each arm, fresh seeds, and what two studies have in common."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from emo_hf.study.plan import Plan, Run, end_of, half_decades, is_lost, loss_at_rate, next_rates, rate_of
from emo_hf.study.task import JUDGE, TUNE
from tests.study.studies import ARMS, FUNCTION, line, played, study


def bowl(best: float, width: float = 8.0) -> Any:
    """Loss against the rate, lowest at 10^(best/4)."""
    return lambda quarter: 1.0 + ((quarter - best) / width) ** 2


def tuned_rates(loss: Any, low: float = 1e-4, high: float = 1e-2, near: int | None = None) -> dict[int, float]:
    """All rates that are run for an arm with this loss."""
    losses: dict[int, float] = {}
    while len(losses) < 99 and (missing := next_rates(losses, half_decades(low, high), near)):
        assert not losses.keys() & set(missing)
        losses |= {quarter: loss(quarter) for quarter in missing}
    return losses


def test_rates_are_quarters_of_a_decade() -> None:
    assert [rate_of(quarter) for quarter in (-12, -11, -10, -9, -8)] == [1e-3, 1.78e-3, 3.16e-3, 5.62e-3, 1e-2]
    assert list(half_decades(1e-4, 3e-3)) == [-16, -14, -12, -10]


@pytest.mark.parametrize("best", [-16, -15, -13.4, -11, -10, -8, -5.2, -20])
def test_the_best_rate_lies_between_two_worse_ones_a_quarter_of_a_decade_away(best: float) -> None:
    losses = tuned_rates(bowl(best))
    found = min(losses, key=losses.__getitem__)
    assert found == round(best)
    assert {found - 1, found + 1} <= losses.keys()
    assert all(not math.isnan(loss_at_rate(losses, found + away)) for away in (-4, -2, 2, 4))


def test_half_decades_come_first_and_quarters_only_around_the_best() -> None:
    assert next_rates({}, half_decades(1e-4, 1e-2), None) == [-16, -14, -12, -10, -8]
    odd = [quarter for quarter in tuned_rates(bowl(-12)) if quarter % 2]
    assert odd == [-13, -11]


def test_a_search_for_a_better_rate_ends_two_decades_beyond_the_range() -> None:
    losses = tuned_rates(lambda quarter: -quarter)  # ever better
    assert max(losses) == -8 + 8
    assert tuned_rates(lambda quarter: math.inf).keys() == {*range(-24, -7, 2)}  # lost: lower rates are tried


def test_every_arm_is_run_half_a_decade_around_the_best_rate_of_the_reference() -> None:
    losses = tuned_rates(bowl(-16), near=-3)
    assert all(not math.isnan(loss_at_rate(losses, at)) for at in (-5, -3, -1))


def test_a_loss_between_rates_is_read_half_way_and_unknown_where_there_are_none() -> None:
    assert loss_at_rate({-12: 1.0, -10: 2.0}, -11) == 1.5
    assert math.isnan(loss_at_rate({-12: 1.0}, -11))


def test_fresh_seeds_follow_when_an_arm_is_tuned_and_no_seed_is_both() -> None:
    small = study()
    plan = Plan(small, {})
    assert {run.phase for run in plan.open} == {TUNE}
    assert plan.later["toy"] > 0
    plan, lines = played(small, lambda run: bowl(-8)(round(4 * math.log10(run.rate))))
    assert plan.best == {("toy", "adamw"): -8, ("toy", "navi"): -8}
    assert plan.later == {"toy": 0}
    judged = [run for run in plan.runs() if run.phase == JUDGE and run.key in lines]
    assert {(run.arm.name, run.rate, run.seed) for run in judged} == {
        (arm, 1e-2, seed) for arm in ("adamw", "navi") for seed in (1001, 1002, 1003)
    }
    assert {run.seed for run in plan.runs() if run.phase == TUNE} == {1}


def test_a_task_may_have_fewer_seeds_and_other_rates_and_an_arm_rates_of_its_own() -> None:
    arms = {**ARMS, "scale": {"optim": "emosens", "learning_rates": [0.1, 10]}}
    tasks = {"toy": {"function": FUNCTION, "steps": 8, "seeds": 2, "learning_rates": [1e-6, 1e-5]}}
    plan = Plan(study(arms=arms, tasks=tasks), {})
    rates = {arm: sorted(run.rate for run in plan.open if run.arm.name == arm) for arm in arms}
    assert rates["adamw"] == [1e-6, 3.16e-6, 1e-5]
    assert rates["scale"] == [0.1, 0.316, 1.0, 3.16, 10.0]
    assert len(small_seeds := plan.study.fresh_seeds(plan.study.tasks["toy"])) == 2, small_seeds


def test_weights_and_average_are_tuned_apart_and_share_the_runs_of_a_rate() -> None:
    arms = {"adamw": ARMS["adamw"], "flat": {"optim": "adamw_torch", "lr_scheduler_type": "constant", "average": True}}

    def end(run: Run) -> Any:
        quarter = round(4 * math.log10(run.rate))
        return bowl(-10)(quarter), bowl(-9)(quarter) - 0.1

    plan, lines = played(study(arms=arms), end)
    assert plan.best["toy", "flat"] == -10
    assert plan.best["toy", "flat+average"] == -9
    judged = {(run.rate, run.seed) for run in plan.runs() if run.arm.name == "flat" and run.phase == JUDGE}
    assert len(judged) == 2 * 3
    of_average = plan.reported(plan.study.tasks["toy"], plan.study.judged["flat+average"])
    assert {found["rate"] for found in of_average} == {rate_of(-9)}
    assert {end_of(found, plan.study.judged["flat+average"], JUDGE) for found in of_average} == {0.9}
    assert len(lines) == len({run.key for run in plan.runs() if run.key in lines})


def test_where_only_the_average_counts_it_has_the_name_of_the_arm() -> None:
    arms = {"adamw": ARMS["adamw"], "flat": {"optim": "adamw_torch", "average": "only"}}
    small = study(arms=arms)
    assert {name: judged.averaged for name, judged in small.judged.items()} == {"adamw": False, "flat": True}


def test_a_task_with_the_rates_of_another_is_not_tuned() -> None:
    tasks = {
        "toy": {"function": FUNCTION, "steps": 8},
        "hard": {"function": FUNCTION, "steps": 8, "noise": 1.0, "rates_of": "toy"},
    }
    _, lines = played(study(tasks=tasks), lambda run: bowl(-8)(round(4 * math.log10(run.rate))))
    hard = [found for found in lines.values() if found["task"] == "hard"]
    assert {found["phase"] for found in hard} == {JUDGE}
    assert {found["rate"] for found in hard} == {1e-2}
    assert len(hard) == 6


def test_a_run_is_found_again_by_what_decides_its_result_and_not_by_its_name() -> None:
    first = Plan(study(), {}).open[0]
    renamed = {"other": ARMS["adamw"], "navi": ARMS["navi"]}
    again = Plan(study(arms=renamed, reference="other"), {}).open[0]
    assert again.id != first.id
    assert again.key == first.key
    averages = [study(arms={"adamw": {**ARMS["adamw"], "average": kind}}) for kind in (True, "only")]
    assert len({Plan(small, {}).open[0].key for small in averages}) == 1
    for changes in (
        {"arms": {"adamw": {**ARMS["adamw"], "average": True}}},
        {"tasks": {"toy": {"function": FUNCTION, "steps": 9}}},
        {"tasks": {"toy": {"function": FUNCTION, "steps": 8, "noise": 0.2}}},
        {"tasks": {"toy": {"function": FUNCTION, "steps": 8, "training": {"warmup_steps": 2}}}},
        {"arms": {**ARMS, "adamw": {**ARMS["adamw"], "weight_decay": 0.1}}},
        {"evaluations": 2},
    ):
        assert Plan(study(**changes), {}).open[0].key != first.key, changes
    json.dumps(first.config(), allow_nan=False)


def test_a_failed_run_is_open_again() -> None:
    plan = Plan(study(), {})
    run = plan.open[0]
    plan.update({run.key: {"key": run.key, "error": "it broke"}})
    assert run in plan.open
    plan.update({run.key: line(run, 1.0)})
    assert run not in plan.open


@pytest.mark.parametrize(
    ("end", "chance", "lost"),
    [(1.0, None, False), (None, None, True), (2.0, None, True), (2.5, 9.0, True), (1.0, 0.9, True), (0.8, 0.9, False)],
)
def test_a_run_is_lost_that_ends_no_better_than_it_began_or_than_chance(
    end: float | None, chance: float | None, lost: bool
) -> None:
    small = study()
    found = line(Plan(small, {}).open[0], end, chance=chance)
    assert is_lost(found, small.judged["adamw"]) == lost
    assert (end_of(found, small.judged["adamw"], JUDGE) == math.inf) == lost


def test_a_rate_at_which_a_tuning_seed_is_lost_is_not_the_best() -> None:
    small = study(seeds={"tune": 2, "report": 1})

    def end(run: Run) -> float | None:
        quarter = round(4 * math.log10(run.rate))
        return None if quarter >= -8 and run.seed == 2 else bowl(-8)(quarter)

    plan, _ = played(small, end)
    assert plan.best["toy", "adamw"] == -9


def test_an_arm_that_stops_itself_is_judged_where_the_tuning_half_was_best() -> None:
    arms = {**ARMS, "ends": {"optim": "adamw_torch", "emotion": "settle", "self_stop": "stop"}}
    small = study(arms=arms)
    run = next(run for run in Plan(small, {}).open if run.arm.name == "ends")
    curves = {"tune": [[0, 2.0], [5, 0.5], [10, 0.7]], "judge": [[0, 2.0], [5, 0.6], [10, 0.55]]}
    found = line(run, 1.0, curves={"weights": curves})
    assert end_of(found, small.judged["ends"], JUDGE) == 0.6
    assert end_of(found, small.judged["adamw"], JUDGE) == 0.55


def test_a_study_goes_on_with_the_same_runs_after_a_new_beginning() -> None:
    small = study()
    lines = {run.key: line(run, 1.0) for run in Plan(small, {}).open[:3]}
    assert {run.key for run in Plan(small, lines).open} == {run.key for run in Plan(small, {}).open} - lines.keys()
    assert dataclasses.replace(Plan(small, {}).open[0], phase=JUDGE).key == Plan(small, {}).open[0].key
