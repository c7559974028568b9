"""Pickles and deep copies are optimizers in their own right."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from emo_hf import EmoNavi, EmoOptimizer
from tests.emo_cases import assert_identical, build, each_optimizer, parameters, run, snapshot

STEPS, MORE = 40, 60


def pickled(optimizer: EmoOptimizer) -> EmoOptimizer:
    twin: EmoOptimizer = pickle.loads(pickle.dumps(optimizer))
    return twin


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("use_shadow", [False, True])
@each_optimizer
def test_a_copy_goes_on_identically_and_independently(
    cls: type[EmoOptimizer], use_shadow: bool, duplicate: Callable[[EmoOptimizer], EmoOptimizer]
) -> None:
    original = build(cls, use_shadow=use_shadow)
    run(original, range(STEPS))
    original.observe(0.5)  # a loss that waits for its step is copied with the rest
    twin = duplicate(original)
    assert type(twin) is cls
    assert twin.emotion == original.emotion
    assert twin.effective_lr == original.effective_lr
    before = snapshot(original)
    run(twin, range(STEPS, MORE))
    assert_identical(snapshot(original), before)
    run(original, range(STEPS, MORE))
    assert_identical(snapshot(twin), snapshot(original))
    assert twin.metrics() == original.metrics()


def test_a_pickled_optimizer_still_checks_what_it_is_given() -> None:
    optimizer = pickled(build(EmoNavi))
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.add_param_group({"params": parameters(), "lr": -1.0})
    with pytest.warns(RuntimeWarning, match="observe"):
        optimizer.step()
