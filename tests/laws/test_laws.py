"""Losses around and below zero: v3.1 loses its scale and says so; the robust law goes on, and is v3.1 above zero."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import emo_hf
from emo_hf import EmoNavi, EmoOptimizer
from emo_hf.laws import law_names
from emo_hf.laws.law import WINDOW, Law
from emo_hf.laws.robust import Robust
from emo_hf.laws.v3_1 import V3_1
from emo_hf.optim.family import FAMILY
from emo_hf.optim.version import Version
from tests.emo_cases import assert_identical, build, give_gradients, parameters, snapshot

any_loss = st.floats(allow_nan=False, allow_infinity=False)
ordinary_loss = st.floats(-1e3, 1e3).filter(lambda loss: loss == 0.0 or abs(loss) > 1e-3)


def coefficients(emotion: Law, losses: list[float]) -> list[float]:
    return [emotion.feel(loss).coefficient for loss in losses]


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
each_trace = pytest.mark.parametrize("losses", TRACES.values(), ids=TRACES.keys())


@each_trace
def test_v31_freezes_on_losses_around_or_below_zero_and_notices(losses: list[float]) -> None:
    emotion = V3_1()
    assert sum(coefficients(emotion, losses)[-WINDOW * 4 :]) / (WINDOW * 4) < 0.35
    noticed = V3_1()
    assert any(noticed.feel(loss) and noticed.complaint() for loss in losses)


@each_trace
def test_the_robust_law_neither_freezes_nor_boosts_for_good(losses: list[float]) -> None:
    emotion = Robust()
    felt = coefficients(emotion, losses)
    assert all(0.6 < sum(felt[i : i + 100]) / 100 < 1.5 for i in range(0, len(felt) - 100, 50))
    assert sum(c < 0.1 for c in felt) == 0
    assert emotion.complaint() is None


def test_the_robust_law_accelerates_while_the_loss_falls_whatever_its_sign_and_brakes_at_a_leap() -> None:
    for level in (3.0, 0.0, -3.0):
        emotion = Robust()
        falling = [emotion.feel(level + 1.0 - t / 100).scalar for t in range(200)]
        assert sum(falling[100:]) / 100 > 0.1
        rising = [emotion.feel(level - 1.0 + t / 100).scalar for t in range(300)]
        assert sum(rising[200:]) / 100 < -0.1
        assert emotion.feel(1000.0).coefficient < (0.1 if level > 1.0 else 0.3)


def test_noise_around_zero_is_quiet() -> None:
    emotion = Robust()
    scalars = [emotion.feel(loss).scalar for loss in noisy(lambda t: 0.0, 3.0, 3000)]
    assert sum(map(abs, scalars[500:])) / 2500 < 0.125


@settings(max_examples=200)
@given(st.lists(st.floats(1e-3, 1e6) | st.floats(1e-12, 1e-4), min_size=1, max_size=80))
def test_above_zero_the_robust_law_is_v31_to_the_last_bit(losses: list[float]) -> None:
    robust, published = Robust(), V3_1()
    for loss in losses:
        assert robust.feel(loss) == published.feel(loss)
    assert replace(robust.view(), law="v3.1", details={}) == published.view()


@settings(max_examples=200)
@given(st.lists(ordinary_loss, min_size=1, max_size=60), st.floats(1.0, 1e9))
def test_the_robust_scalar_does_not_depend_on_the_scale_of_the_loss(losses: list[float], scale: float) -> None:
    one, other = Robust(), Robust()
    for loss in losses:
        assert one.feel(loss).scalar == pytest.approx(other.feel(scale * loss).scalar, abs=1e-6)


def dust(seed: int, share: float, steps: int = 50) -> list[float]:
    """Losses of GRPO with one update for each batch: rounding errors of either sign, and a rare large one."""
    generator = random.Random(seed)
    losses = [generator.gauss(0.0, 1e-8) if generator.random() > share else 5e-3 for _ in range(steps)]
    return [-1e-8, *losses]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.2])
def test_dust_with_a_rare_large_loss_does_not_freeze_the_robust_law_which_says_what_it_is(
    share: float, seed: int
) -> None:
    emotion = Robust()
    felt = coefficients(emotion, dust(seed, share))
    assert sum(felt) / len(felt) > 0.7
    assert min(felt) > 0.25
    assert sum(c < 0.5 for c in felt) <= 3 * (1 + sum(loss == 5e-3 for loss in dust(seed, share)))
    assert "emo_law='none'" in (emotion.complaint() or "")


def test_dust_is_told_from_losses_that_are_small_all_alike_or_were_larger_once() -> None:
    for losses in (noisy(lambda t: 0.0, 1e-4), noisy(lambda t: math.exp(-t / 100) - 0.05, 0.02), [-5.0] * 100):
        emotion = Robust()
        assert not any(emotion.feel(loss) and emotion.complaint() for loss in losses)


def test_a_change_is_felt_again_as_soon_as_the_losses_are_no_dust_any_more() -> None:
    emotion = Robust()
    coefficients(emotion, dust(0, 0.1))
    falling = [emotion.feel(1.0 - t / 100).scalar for t in range(200)]
    assert sum(falling[100:]) / 100 > 0.1


def test_the_warning_of_dust_comes_once_from_the_optimizer() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = EmoNavi([torch.nn.Parameter(torch.ones(1))], emo_law="robust")
        for loss in dust(1, 0.05, 80):
            optimizer.observe(loss)
            optimizer.step()
    assert [str(warning.message).partition(" (")[0] for warning in caught] == ["EmoNavi: most losses are next to zero"]
    assert caught[0].filename == __file__


@settings(max_examples=200)
@given(st.lists(any_loss, min_size=1, max_size=60))
def test_the_robust_scalar_is_bounded_and_never_nan(losses: list[float]) -> None:
    emotion = Robust()
    for loss in losses:
        decision = emotion.feel(loss)
        assert -1.0 <= decision.scalar <= 1.0
        assert 0.0 <= decision.coefficient <= 1.625


@settings(max_examples=60)
@given(st.lists(any_loss | st.just(math.nan), max_size=40), st.lists(any_loss, max_size=40))
def test_a_saved_robust_emotion_goes_on_as_if_it_had_never_stopped(before: list[float], after: list[float]) -> None:
    emotion, restored = Robust(), Robust()
    for loss in before:
        emotion.feel(loss)
    restored.load_state_dict(json.loads(json.dumps(emotion.state_dict())))
    for loss in after:
        assert restored.feel(loss) == emotion.feel(loss)
    assert restored.state_dict() == emotion.state_dict()


@pytest.mark.parametrize("size", ["x", None, ...])
def test_a_damaged_robust_state_is_refused_and_changes_nothing(size: Any) -> None:
    emotion = Robust()
    emotion.feel(-1.0)
    before = emotion.state_dict()
    state = {name: value for name, value in (before | {"short": 7.0, "size": size}).items() if value is not ...}
    with pytest.raises(ValueError, match="damaged"):
        emotion.load_state_dict(state)
    assert emotion.state_dict() == before


@settings(max_examples=200)
@given(st.lists(st.floats(1e-4, 1e6), min_size=WINDOW, max_size=120))
def test_no_loss_above_zero_is_ever_taken_for_saturation(losses: list[float]) -> None:
    emotion = V3_1()
    for loss in losses:
        emotion.feel(loss)
        assert emotion.complaint() is None


def train(optimizer: EmoNavi, losses: list[float]) -> list[str]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, loss in enumerate(losses):
            give_gradients(params, step)
            optimizer.observe(loss)
            optimizer.step()
    return [str(warning.message) for warning in caught]


def test_saturation_warns_once_with_the_remedy_and_the_remedy_helps() -> None:
    losses = TRACES["log-likelihood, always below zero"][:200]
    frozen, moved = parameters(), parameters()
    (said,) = train(EmoNavi(frozen, weight_decay=0.0), losses)
    assert "around or below zero" in said
    assert 'optim_args="emo_law=robust"' in said
    assert train(EmoNavi(moved, weight_decay=0.0, emo_law="robust"), losses) == []

    def distance(params: list[torch.nn.Parameter]) -> float:
        return sum((p - q).norm().item() for p, q in zip(params, parameters(), strict=True))

    assert distance(moved) > 10 * distance(frozen)


def test_losses_above_zero_never_warn() -> None:
    assert train(EmoNavi(parameters()), [2.0 * 0.9**t for t in range(100)] + [1e-3, 500.0] * 40) == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copied_optimizer_keeps_its_law(duplicate: Callable[[EmoNavi], EmoNavi]) -> None:
    optimizer = EmoNavi(parameters(), emo_law="robust")
    train(optimizer, [0.5, -0.5, 0.2])
    twin = duplicate(optimizer)
    train(optimizer, [0.1, -0.3])
    train(twin, [0.1, -0.3])
    assert_identical(snapshot(twin), snapshot(optimizer))
    twin.load_state_dict(optimizer.state_dict())
    assert twin.emotion.law == "robust"
    assert twin.emotion == optimizer.emotion


@pytest.mark.parametrize(("saved", "loading"), [("v3.1", "robust"), ("robust", "v3.1")])
def test_a_checkpoint_of_another_law_is_refused_with_the_option_that_reads_it(saved: str, loading: str) -> None:
    source, optimizer = build(EmoNavi, emo_law=saved), build(EmoNavi, emo_law=loading)
    train(source, [1.0, 0.5])
    with pytest.raises(ValueError, match=f"follows the law '{saved}'.*emo_law={saved}"):
        optimizer.load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("cls", "version"), [(cls, version) for cls in FAMILY.values() for version in cls.versions.values()]
)
def test_every_optimizer_takes_every_law_by_its_name_that_can_drive_its_rule_and_no_other(
    cls: type[EmoOptimizer], version: Version
) -> None:
    for law in law_names():
        if version.rule.reads_scalar and law not in (version.law, "none"):
            with pytest.raises(ValueError, match=f"emo_law='{law}': .* reads the scalar of the law {version.law}"):
                cls(parameters(), version=version.name, emo_law=law)
            continue
        optimizer = cls(parameters(), version=version.name, emo_law=law)
        assert optimizer.emotion.law == law
        assert optimizer.state_dict()["param_groups"][0]["emotion"]["law"] == law
    assert cls(parameters(), version=version.name).emotion.law == version.law
    with pytest.raises(ValueError, match=r"emo_law.*'v4'"):
        cls(parameters(), version=version.name, emo_law="v4")


def test_laws_can_be_named_where_optimizers_are_made_by_name() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"emo_law='rubust' is not acceptable: it takes one of v3\.0, v3\.1, robust"):
        emo_hf.create_optimizer("emonavi", model, emo_law="rubust")
    assert emo_hf.create_optimizer("emonavi", model, emo_law="robust").emotion.law == "robust"
