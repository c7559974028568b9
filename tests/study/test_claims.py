"""The examination of the claims: what it measures, what it damages, and that a verdict can be either way."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))

from claims_runs import (
    DAMAGES,
    Arm,
    Run,
    Setting,
    adapter_shapes,
    gradient_moments,
    step_bound,
)
from claims_tables import tables
from claims_verdicts import adapter_verdict, compare, correlate, moments_verdict, recovery, repair_verdict
from examine_claims import examine, measure_all

from emo_hf.study.task import Task
from tests.study import tiny_task

RATES = {"EmoNavi": 1e-2, "EmoLynx": 1e-2, "EmoFact": 1e-2, "AdamW": 1e-2}
ARMS = [*(Arm(name, law) for name in ("EmoNavi", "EmoLynx", "EmoFact") for law in ("v3.1", "none")), Arm("AdamW")]
TINY = Setting(tiny_task.make, 100, RATES, frozenset())


def with_adapter(seed: int) -> Task:
    from peft import LoraConfig, get_peft_model

    task = tiny_task.make(seed)
    adapted: Any = get_peft_model(task.model, LoraConfig(r=2, target_modules=["0"]))  # type: ignore[arg-type]
    return Task(model=adapted, train_batches=task.train_batches, loss=task.loss, evaluate=task.evaluate)


def test_every_claim_gets_a_verdict_and_a_table() -> None:
    settings = {
        "tiny": Setting(tiny_task.make, 48, RATES, frozenset({"8", "11", "12"})),
        "adapted": Setting(with_adapter, 32, RATES, frozenset({"9"})),
    }
    claims = examine(measure_all(settings, 2), settings)
    assert {claim["verdict"] for claim in claims.values()} <= {"confirmed", "refuted", "not shown"}
    assert claims["12"]["verdict"] == "confirmed"
    assert all(f"Claim {number}" in tables(claims) for number in ("8", "9", "11", "12"))


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm.optimizer} {arm.law}")
def test_no_step_is_above_the_bound_of_its_rule_even_after_a_spike(arm: Arm) -> None:
    run = Run(TINY, arm, 0)
    run.advance(60)
    steps = run.advance(40, first_loss_times=1e4).step
    assert 0.0 < max(steps) <= 1.001 * step_bound(arm, run.params, 100)


def test_a_copy_goes_on_as_the_run_does_and_damage_to_it_stays_with_it() -> None:
    run = Run(TINY, Arm("EmoNavi", "v3.1"), 0)
    run.advance(60)
    same, *others = (run.copy() for _ in range(1 + len(DAMAGES)))
    for other, damage in zip(others, DAMAGES.values(), strict=True):
        damage(other)
    after = run.advance(20).loss[60:]
    assert same.advance(20).loss == after
    assert all(other.advance(20).loss != after for other in others)


def test_with_none_c_is_felt_and_not_used() -> None:
    trace = Run(TINY, Arm("EmoNavi", "none"), 0).advance(60)
    assert set(trace.factor) == {1.0}
    assert max(trace.felt) > 1.125


def test_moments_are_those_of_the_elements_that_are_not_zero() -> None:
    param = nn.Parameter(torch.zeros(4))
    param.grad = torch.tensor([0.0, 1.0, 1.0, -2.0])  # m2 = 2, m3 = −2, m4 = 6
    found = gradient_moments([param])
    assert found["skewness"] == pytest.approx(-2 / 2**1.5)
    assert found["kurtosis"] == pytest.approx(6 / 4 - 3)
    assert found["log skewness"] == pytest.approx(1 / math.sqrt(2))


def test_the_effective_rank_is_that_of_equal_singular_values() -> None:
    model = with_adapter(0).model
    layer: Any = next(module for module in model.modules() if hasattr(module, "lora_A"))
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.eye(2, 3))
        layer.lora_B["default"].weight.copy_(torch.eye(4, 2))
    (shape,) = adapter_shapes(model)
    scaling = layer.scaling["default"]
    assert shape == pytest.approx({"effective rank": 2.0, "stable rank": 2.0, "norm": scaling * math.sqrt(2)})


def test_smooth_series_that_have_nothing_in_common_are_significant_no_more_often_than_by_chance() -> None:
    drawn = np.random.default_rng(0)

    def smooth() -> list[float]:
        made = [0.0]
        for pushed in drawn.standard_normal(300):
            made.append(0.9 * made[-1] + pushed)
        return made

    found = [correlate(smooth(), smooth()) for _ in range(200)]
    assert sum(each is not None and each.p < 0.05 for each in found) <= 20  # 10 by chance; without shifts about 100
    same = correlate(list(range(50)), [value**3 for value in range(50)])
    assert same is not None
    assert same.rho == pytest.approx(1.0)
    assert correlate([1.0] * 50, list(range(50))) is None


def test_recovery_is_the_first_step_whose_window_is_back_within_5_percent() -> None:
    before = [1.0] * 16
    assert recovery(before, [1.0] * 40) == 16
    assert recovery(before, [9.0] * 10 + [1.0] * 40) == 26  # the first window without a 9
    assert recovery(before, [2.0] * 40) == 41


def moments_rows(rho: float) -> list[dict[str, Any]]:
    of = {"rho": rho, "significant": 9, "runs": 9}
    return [{"moment": "skewness", "raw": of, "detrended": of, "detrended σ": of} for _ in range(3)]


def test_verdicts_follow_their_rules() -> None:
    assert [moments_verdict(moments_rows(rho)) for rho in (0.6, -0.6, 0.3, 0.1)] == [
        "confirmed", "confirmed", "not shown", "refuted",
    ]  # fmt: skip
    damages = ["weights", "state"]
    far, near = {"a": [1.0, 1.1, 0.9]}, {"a": [0.1, -0.1, 0.01]}
    less = {"a": [-1.0, -1.1, -0.9]}
    both = compare({"weights: x": less, "state: x": less})
    assert repair_verdict(both, damages) == "confirmed"
    assert repair_verdict(compare({"weights: x": near, "state: x": less}), damages) == "not shown"
    assert repair_verdict(compare({"weights: x": near, "state: x": far}), damages) == "refuted"
    ends = compare({"none": far, "mean": far})
    assert adapter_verdict(ends["none"], ends["mean"], [1.0], 0.9) == "confirmed"
    assert adapter_verdict(ends["none"], compare({"mean": near})["mean"], [0.01, -0.02], 0.9) == "refuted"
    assert adapter_verdict(ends["none"], compare({"mean": near})["mean"], [0.1], 0.9) == "not shown"
    assert adapter_verdict(ends["none"], compare({"mean": near})["mean"], [0.01], 0.1) == "not shown"  # c hardly acted
