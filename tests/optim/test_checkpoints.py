"""What is saved goes on as if nothing had happened; what does not belong is refused and changes nothing."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer, EmotionView
from emo_hf.laws.v3_1 import V3_1
from tests.emo_cases import (
    OPTIMIZERS,
    SHAPES,
    assert_identical,
    build,
    each_implementation,
    each_optimizer,
    make,
    parameters,
    run,
    snapshot,
    two_groups,
)

STEPS, MORE = 40, 48  # the self-stop window is full by then; a leap of the loss comes after


def as_it_is(state: dict[str, Any]) -> dict[str, Any]:
    return state


def through_torch_load(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@dataclass(frozen=True)
class Interrupted:
    """What a run was at the step where another one takes over, and at its end.

    Attributes:
        params: of each group, at that step.
        state: of the optimizer, at that step.
        then: everything, at that step.
        end: everything, at the end.
        emotion: at the end.
        metrics: at the end; reading them begins a new span of them.
    """

    params: list[list[torch.Tensor]]
    state: dict[str, Any]
    then: tuple[list[torch.Tensor], dict[str, Any]]
    end: tuple[list[torch.Tensor], dict[str, Any]]
    emotion: EmotionView
    metrics: dict[str, Any]


@lru_cache(maxsize=1)
def interrupted(cls: type[EmoOptimizer], implementation: str, dtype: torch.dtype, use_shadow: bool) -> Interrupted:
    """The uninterrupted run, which the tests of one optimizer share: they follow each other."""
    optimizer = build(cls, implementation, dtype, use_shadow=use_shadow)
    run(optimizer, range(STEPS))
    params = [[param.detach().clone() for param in group["params"]] for group in optimizer.param_groups]
    state, then = copy.deepcopy(optimizer.state_dict()), snapshot(optimizer)
    run(optimizer, range(STEPS, MORE))
    return Interrupted(params, state, then, snapshot(optimizer), optimizer.emotion, optimizer.metrics())


@pytest.mark.parametrize("travel", [as_it_is, through_torch_load])
@pytest.mark.parametrize("use_shadow", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_implementation
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    cls: type[EmoOptimizer],
    implementation: str,
    dtype: torch.dtype,
    use_shadow: bool,
    travel: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    whole = interrupted(cls, implementation, dtype, use_shadow)
    resumed = build(cls, implementation, dtype, use_shadow=use_shadow)
    for group, sources in zip(resumed.param_groups, whole.params, strict=True):
        for param, source in zip(group["params"], sources, strict=True):
            param.data.copy_(source)
        group["lr"] = 77.0  # comes back from the checkpoint
    resumed.load_state_dict(travel(copy.deepcopy(whole.state)))
    assert_identical(snapshot(resumed), whole.then)
    run(resumed, range(STEPS, MORE))
    assert_identical(snapshot(resumed), whole.end)
    assert resumed.emotion == whole.emotion
    assert resumed.metrics() == whole.metrics


def test_a_restored_optimizer_reads_the_same_in_logs_before_its_first_step() -> None:
    optimizer, restored = build(EmoNavi), build(EmoNavi)
    run(optimizer, range(7))
    restored.load_state_dict(optimizer.state_dict())
    assert restored.emotion == optimizer.emotion
    assert restored.effective_lr == optimizer.effective_lr
    assert restored.metrics() == optimizer.metrics()


def test_a_checkpoint_holds_tensors_and_plain_values_only() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(type(key) in (str, int) for key in value)
            for entry in value.values():
                check(entry)
        elif type(value) in (list, tuple):
            for entry in value:
                check(entry)
        else:
            assert value is None or type(value) in (int, float, bool, str, torch.Tensor), type(value)

    for cls in OPTIMIZERS:
        optimizer = build(cls, use_shadow=True)
        run(optimizer, range(3))
        state = optimizer.state_dict()
        check(state)
        assert all(type(key) is int for key in state["state"])
        assert all(type(entry) is torch.Tensor for entries in state["state"].values() for entry in entries.values())


def test_a_load_leaves_no_stale_emotion_in_the_groups() -> None:
    optimizer = build(EmoNavi)
    run(optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    assert not any(group.get("emotion") for group in optimizer.param_groups)
    run(optimizer, range(2, 4))
    assert all(group["emotion"]["observations"] == 4 for group in optimizer.state_dict()["param_groups"])


def test_a_checkpoint_taken_before_the_first_step_can_be_loaded() -> None:
    fresh, other = build(EmoFact), build(EmoFact)
    other.load_state_dict(through_torch_load(fresh.state_dict()))
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


@each_optimizer
@pytest.mark.parametrize("flatten", [False, True])
def test_the_state_travels_through_a_distributed_checkpoint(
    cls: type[EmoOptimizer], flatten: bool, tmp_path: Path
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2)]
    optimizers = [make(cls, [{"params": m[0].parameters()}, {"params": m[1].parameters(), "lr": 0.1}]) for m in models]
    run(optimizers[0], range(STEPS))
    models[1].load_state_dict(models[0].state_dict())
    checkpoint_id = str(tmp_path / "checkpoint")
    save(
        {"optimizer": get_optimizer_state_dict(models[0], optimizers[0], options=options)}, checkpoint_id=checkpoint_id
    )
    target = {"optimizer": get_optimizer_state_dict(models[1], optimizers[1], options=options)}
    load(target, checkpoint_id=checkpoint_id)
    set_optimizer_state_dict(models[1], optimizers[1], target["optimizer"], options=options)
    assert optimizers[1].emotion == optimizers[0].emotion
    for optimizer in optimizers:
        run(optimizer, range(STEPS, MORE))
    assert_identical(snapshot(optimizers[1]), snapshot(optimizers[0]))


def changed(change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def apply(state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            for name, value in change.items():
                if value is ...:
                    del group["emotion"][name]
                else:
                    group["emotion"][name] = value

    return apply


NEEDED = ["format", "optimizer", *(name for name in V3_1().state_dict() if name != "coefficient")]

FOREIGN: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("other-format", changed({"format": 99}), "format 99"),
    ("other-law", changed({"law": "v9"}), "law 'v9'"),
    ("coefficients-damaged", changed({"coefficients": [1.0]}), "damaged|values"),
    *((f"without-{name}", changed({name: ...}), name) for name in NEEDED),
]


def assert_refused(optimizer: EmoOptimizer, state: dict[str, Any], message: str) -> None:
    optimizer.observe(3.0)
    before, view = snapshot(optimizer), optimizer.emotion
    groups = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert_identical(snapshot(optimizer), before)
    assert optimizer.emotion == view
    assert [dict(group) for group in optimizer.param_groups] == groups
    optimizer.step()
    assert optimizer.emotion.observations == view.observations + 1, "the loss that waited was lost"


@pytest.mark.parametrize(("damage", "message"), [entry[1:] for entry in FOREIGN], ids=[entry[0] for entry in FOREIGN])
def test_a_damaged_emotion_is_refused_and_nothing_changes(
    damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    source, optimizer = build(EmoNavi, use_shadow=True), build(EmoNavi)
    run(source, range(5))
    run(optimizer, range(2))
    state = copy.deepcopy(source.state_dict())
    damage(state)
    assert_refused(optimizer, state, message)


@each_optimizer
def test_the_state_of_adamw_is_refused_and_nothing_changes(cls: type[EmoOptimizer]) -> None:
    params = parameters(SHAPES)
    source = torch.optim.AdamW(two_groups(params), lr=0.5)
    optimizer = build(cls)
    run(optimizer, range(2))
    assert_refused(optimizer, source.state_dict(), f"holds no emotion.*not saved by {cls.__name__}")


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("other", OPTIMIZERS)
def test_the_state_of_another_emo_optimizer_is_refused_by_name(
    cls: type[EmoOptimizer], other: type[EmoOptimizer]
) -> None:
    if cls is other:
        return
    source, optimizer = build(other), build(cls)
    run(source, range(2))
    run(optimizer, range(2))
    assert_refused(optimizer, source.state_dict(), f"saved by {other.__name__}, not by {cls.__name__}")


def test_a_state_of_other_groups_is_refused_and_nothing_changes() -> None:
    optimizer = build(EmoLynx)
    run(optimizer, range(2))
    params = parameters(SHAPES)
    assert_refused(optimizer, EmoLynx(params).state_dict(), "group")
    fewer = EmoLynx([{"params": params[:1]}, {"params": params[1:2]}])
    assert_refused(optimizer, fewer.state_dict(), "size|group")


def test_state_dict_hooks_see_the_whole_state() -> None:
    optimizer = build(EmoNavi)
    run(optimizer, range(2))
    seen: list[tuple[str, Any]] = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append(("before saving", opt)))
    optimizer.register_state_dict_post_hook(
        lambda opt, state: seen.append(("saved", state["param_groups"][0]["emotion"]["short"]))
    )
    optimizer.register_load_state_dict_pre_hook(
        lambda opt, state: seen.append(("before loading", "emotion" in state["param_groups"][0]))
    )
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(("loaded", optimizer.emotion.observations)))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [
        ("before saving", optimizer),
        ("saved", optimizer.emotion.short),
        ("before loading", True),
        ("loaded", 2),
    ]


def test_a_hook_may_hand_over_another_state_to_load() -> None:
    source, optimizer = build(EmoNavi), build(EmoNavi)
    run(source, range(4))
    wanted = source.state_dict()
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: copy.deepcopy(state["wrapped"]))
    optimizer.load_state_dict({"wrapped": wanted})
    assert optimizer.emotion == source.emotion
