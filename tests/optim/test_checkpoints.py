"""What is saved goes on as if nothing had happened; copies do so too."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer, attach
from tests.emo_cases import (
    assert_identical,
    build,
    each_implementation,
    each_optimizer,
    held,
    parameters,
    run,
    snapshot,
    through_a_file,
)

STEPS, MORE = 40, 48  # the self-stop window is full by then; a leap of the loss comes after


@pytest.mark.parametrize(("dtype", "use_shadow"), [(torch.float32, False), (torch.bfloat16, True)])
@each_implementation
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one_and_the_state_plain(
    cls: type[EmoOptimizer], implementation: str, dtype: torch.dtype, use_shadow: bool
) -> None:
    optimizer, resumed = (build(cls, implementation, dtype, use_shadow=use_shadow) for _ in range(2))
    run(optimizer, range(STEPS))
    state = optimizer.state_dict()
    assert all(type(value) is torch.Tensor for of_one in state["state"].values() for value in of_one.values())
    for group, source in zip(resumed.param_groups, optimizer.param_groups, strict=True):
        for param, value in zip(group["params"], held(source["params"]), strict=True):
            param.data.copy_(value)
        group["lr"] = 77.0  # comes back from the checkpoint
    given = through_a_file(state)
    resumed.load_state_dict(given)
    for more in (range(STEPS, MORE), range(0)):
        assert_identical(snapshot(resumed), snapshot(optimizer))
        assert resumed.emotion == optimizer.emotion
        assert resumed.effective_lr == optimizer.effective_lr
        assert resumed.metrics() == optimizer.metrics()
        run(optimizer, more)
        run(resumed, more)
    assert_identical(given["param_groups"], state["param_groups"])


def pickled(optimizer: EmoOptimizer) -> EmoOptimizer:
    twin: EmoOptimizer = pickle.loads(pickle.dumps(optimizer))
    return twin


@pytest.mark.parametrize(("duplicate", "use_shadow"), [(copy.deepcopy, True), (pickled, False)])
@each_optimizer
def test_a_copy_goes_on_identically_and_independently(
    cls: type[EmoOptimizer], use_shadow: bool, duplicate: Callable[[EmoOptimizer], EmoOptimizer]
) -> None:
    original = build(cls, use_shadow=use_shadow)
    run(original, range(STEPS))
    original.observe(0.5)  # a loss that waits for its step is copied with the rest
    twin = duplicate(original)
    assert type(twin) is cls
    assert (twin.emotion, twin.effective_lr) == (original.emotion, original.effective_lr)
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


def test_a_load_leaves_no_stale_emotion_in_the_groups_and_keeps_what_a_scheduler_has_put_there() -> None:
    optimizer = build(EmoNavi)
    run(optimizer, range(2))
    optimizer.param_groups[0]["initial_lr"] = 0.01
    state = optimizer.state_dict()
    del optimizer.param_groups[0]["initial_lr"]
    optimizer.load_state_dict(state)
    assert not any(group.get("emotion") for group in optimizer.param_groups)
    assert optimizer.param_groups[0]["initial_lr"] == 0.01
    run(optimizer, range(2, 4))
    assert all(group["emotion"]["observations"] == 4 for group in optimizer.state_dict()["param_groups"])


def test_a_checkpoint_taken_before_the_first_step_can_be_loaded() -> None:
    fresh, other = build(EmoFact), build(EmoFact)
    other.load_state_dict(through_a_file(fresh.state_dict()))
    run(fresh, range(3))
    run(other, range(3))
    assert_identical(snapshot(other), snapshot(fresh))


def test_a_loss_that_waits_for_its_step_does_not_survive_a_load() -> None:
    optimizer = build(EmoNavi)
    optimizer.observe(100.0)
    optimizer.load_state_dict(build(EmoNavi).state_dict())
    optimizer.observe(2.0)
    optimizer.step()
    assert optimizer.emotion.short == 2.0


def test_a_state_of_groups_without_names_fits_groups_with_names_and_the_other_way_round() -> None:
    named = EmoLynx([{"params": [nn.Parameter(torch.ones(3))], "name": "a"}])
    plain = EmoLynx([nn.Parameter(torch.ones(3))])
    for source, target in ((named, plain), (plain, named)):
        run(source, range(2))
        target.load_state_dict(source.state_dict())
        assert target.emotion == source.emotion


def test_state_dict_hooks_see_the_whole_state_and_may_hand_over_another_to_load() -> None:
    source, optimizer = build(EmoNavi), build(EmoNavi)
    run(source, range(2))
    seen: list[tuple[str, Any]] = []
    source.register_state_dict_pre_hook(lambda opt: seen.append(("before saving", opt)))
    source.register_state_dict_post_hook(
        lambda opt, state: seen.append(("saved", state["param_groups"][0]["emotion"]["short"]))
    )
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: copy.deepcopy(state["wrapped"]))
    optimizer.register_load_state_dict_pre_hook(
        lambda opt, state: seen.append(("before loading", "emotion" in state["param_groups"][0]))
    )
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(("loaded", optimizer.emotion.observations)))
    optimizer.load_state_dict({"wrapped": source.state_dict()})
    assert seen == [
        ("before saving", source),
        ("saved", source.emotion.short),
        ("before loading", True),
        ("loaded", 2),
    ]
    assert optimizer.emotion == source.emotion


@pytest.mark.parametrize("is_attached", [False, True])
def test_a_step_that_only_creates_state_leaves_the_last_decision_as_it_is(is_attached: bool) -> None:
    """As torch's checkpointing code takes it: no loss, rate 0, gradients of 0, and no state yet."""
    param = nn.Parameter(torch.ones(3))
    optimizer: Any = torch.optim.AdamW([param], lr=1e-2) if is_attached else EmoNavi([param], lr=1e-2)
    emo = attach(optimizer, "v3.1") if is_attached else optimizer
    for loss in (3.0, 0.1, 0.1):
        emo.observe(loss)
        param.grad = torch.ones(3)
        optimizer.step()
    before = emo.emotion
    assert before.coefficient != 1.0
    optimizer.state.clear()
    optimizer.param_groups[0]["lr"] = 0.0
    param.grad = torch.zeros(3)
    optimizer.step()
    assert optimizer.state[param]
    assert emo.emotion == before
