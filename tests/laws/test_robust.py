"""Losses around and below zero: v3.1 loses its scale and says so; the robust law goes on, and is v3.1 above zero."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import emo_hf
from emo_hf import FAMILY, EmoNavi
from emo_hf.laws import law_names
from emo_hf.laws.law import WINDOW, Law
from emo_hf.laws.robust import Robust
from emo_hf.laws.v3_1 import V3_1
from tests.emo_cases import give_gradients, parameters


def complaints(emotion: Law, losses: list[float]) -> set[str | None]:
    return {emotion.complaint() for loss in losses if emotion.feel(loss)}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def noisy(make: Callable[[int], float], spread: float, steps: int = 800) -> list[float]:
    generator = random.Random(0)
    return [make(t) + generator.gauss(0.0, spread) for t in range(steps)]


TRACES = {
    "policy gradient, scattered around zero": noisy(lambda t: 0.0, 0.05),
    "policy gradient, exactly zero at first": [0.0, *noisy(lambda t: 0.0, 1e-4)],
    "scattered around a mean that is small beside it": noisy(lambda t: -0.3, 1.0),
    "log-likelihood, always below zero": noisy(lambda t: -2.0 - t / 400, 0.1),
    "contrastive, falling through zero": noisy(lambda t: 1.0 - t / 200, 0.05),
    "falling through zero to a level below": noisy(lambda t: 1.0 - 3.0 * (1 - math.exp(-t / 150)), 0.1),
}


@pytest.mark.parametrize("losses", TRACES.values(), ids=TRACES.keys())
def test_v31_freezes_on_losses_around_or_below_zero_and_notices_while_the_robust_law_goes_on(
    losses: list[float],
) -> None:
    published, robust = V3_1(), Robust()
    assert mean([published.feel(loss).coefficient for loss in losses][-WINDOW * 4 :]) < 0.35
    assert complaints(V3_1(), losses) - {None}
    felt = [robust.feel(loss).coefficient for loss in losses]
    assert all(0.6 < mean(felt[i : i + 100]) < 1.5 for i in range(0, len(felt) - 100, 50))
    assert min(felt) >= 0.1
    assert robust.complaint() is None


@pytest.mark.parametrize("level", [3.0, 0.0, -3.0])
def test_the_robust_law_accelerates_while_the_loss_falls_whatever_its_sign_and_brakes_at_a_leap(level: float) -> None:
    emotion = Robust()
    falling = [emotion.feel(level + 1.0 - t / 100).scalar for t in range(200)]
    assert mean(falling[100:]) > 0.1
    rising = [emotion.feel(level - 1.0 + t / 100).scalar for t in range(300)]
    assert mean(rising[200:]) < -0.1
    assert emotion.feel(1000.0).coefficient < (0.1 if level > 1.0 else 0.3)


def test_noise_around_zero_is_quiet() -> None:
    emotion = Robust()
    scalars = [emotion.feel(loss).scalar for loss in noisy(lambda t: 0.0, 3.0, 3000)]
    assert mean([abs(scalar) for scalar in scalars[500:]]) < 0.125


@settings(max_examples=60)
@given(st.lists(st.floats(1e-3, 1e6) | st.floats(1e-12, 1e-4), min_size=1, max_size=80))
def test_above_zero_the_robust_law_is_v31_to_the_last_bit(losses: list[float]) -> None:
    robust, published = Robust(), V3_1()
    for loss in losses:
        assert robust.feel(loss) == published.feel(loss)
    assert replace(robust.view(), law="v3.1", details={}) == published.view()


def dust(seed: int, share: float, steps: int = 50) -> list[float]:
    """Losses of GRPO with one update for each batch: rounding errors of either sign, and a rare large one."""
    generator = random.Random(seed)
    losses = [generator.gauss(0.0, 1e-8) if generator.random() > share else 5e-3 for _ in range(steps)]
    return [-1e-8, *losses]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.2])
def test_dust_with_a_rare_large_loss_does_not_freeze_the_robust_law_which_says_what_it_is(share: float) -> None:
    for seed in range(4):
        emotion, losses = Robust(), dust(seed, share)
        felt = [emotion.feel(loss).coefficient for loss in losses]
        assert mean(felt) > 0.7
        assert min(felt) > 0.25
        assert sum(c < 0.5 for c in felt) <= 3 * (1 + losses.count(5e-3))
        assert "emo_law='none'" in (emotion.complaint() or "")
        falling = [emotion.feel(1.0 - t / 100).scalar for t in range(200)]
        assert mean(falling[100:]) > 0.1, "a change is felt as soon as the losses are no dust any more"


def test_dust_is_told_from_losses_that_are_small_all_alike_or_were_larger_once() -> None:
    for losses in (noisy(lambda t: 0.0, 1e-4), noisy(lambda t: math.exp(-t / 100) - 0.05, 0.02), [-5.0] * 100):
        assert complaints(Robust(), losses) == {None}


@settings(max_examples=60)
@given(st.lists(st.floats(1e-4, 1e6), min_size=WINDOW, max_size=120), st.lists(st.floats(-1.0, 0.0), max_size=WINDOW))
def test_no_loss_above_zero_and_no_short_run_is_taken_for_saturation(above: list[float], few: list[float]) -> None:
    assert complaints(V3_1(), above) | complaints(V3_1(), few[: WINDOW - 1]) == {None}


def train(optimizer: EmoNavi, losses: list[float]) -> list[str]:
    """What is warned of, each in the line that called `step()`."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, loss in enumerate(losses):
            give_gradients(params, step)
            optimizer.observe(loss)
            optimizer.step()
    assert {warning.filename for warning in caught} <= {__file__}
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "losses",
    [[-3.0, -3.5, -4.0] * 30, [0.5, -0.5, -1.0] * 30, [-(1.1**step) for step in range(60)],
     TRACES["log-likelihood, always below zero"][:200]],
    ids=["below zero", "around zero", "falling without an end", "log-likelihood"],
)  # fmt: skip
def test_saturation_warns_once_with_the_remedy_and_the_remedy_helps(losses: list[float]) -> None:
    frozen, moved = parameters(), parameters()
    (said,) = train(EmoNavi(frozen, weight_decay=0.0), losses)
    assert "around or below zero" in said
    assert 'optim_args="emo_law=robust"' in said
    assert train(EmoNavi(moved, weight_decay=0.0, emo_law="robust"), losses) == []
    by_frozen, by_moved = (
        sum((p - q).norm().item() for p, q in zip(params, parameters(), strict=True)) for params in (frozen, moved)
    )
    assert by_moved > 2 * by_frozen


def test_dust_warns_once_and_losses_above_zero_never() -> None:
    (said,) = train(EmoNavi(parameters(), emo_law="robust"), dust(1, 0.05, 80))
    assert said.startswith("EmoNavi: most losses are next to zero (")
    assert train(EmoNavi(parameters()), [2.0 * 0.9**t for t in range(100)] + [1e-3, 500.0] * 40) == []


@pytest.mark.parametrize("name", FAMILY)
def test_every_optimizer_takes_every_law_by_its_name_that_can_drive_its_rule_and_no_other(name: str) -> None:
    cls, model = FAMILY[name], torch.nn.Linear(2, 2)
    for version in cls.versions.values():
        assert cls(parameters(), version=version.name).emotion.law == version.law
        for law in law_names():
            if version.rule.reads_scalar and law not in (version.law, "none"):
                with pytest.raises(ValueError, match=f"emo_law='{law}': .* reads the scalar of the law {version.law}"):
                    cls(parameters(), version=version.name, emo_law=law)
            else:
                optimizer = emo_hf.create_optimizer(name, model, version=version.name, emo_law=law)
                assert optimizer.emotion.law == law
                assert optimizer.state_dict()["param_groups"][0]["emotion"]["law"] == law
    with pytest.raises(ValueError, match=r"emo_law='rubust' is not acceptable: it takes one of v3\.0, v3\.1, robust"):
        emo_hf.create_optimizer(name, model, emo_law="rubust")
