"""States of an optimizer with an emotion attached: they go on, travel, or are refused."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from emo_hf import EmoNavi, attach
from tests.emo_cases import (
    assert_identical,
    assert_refused,
    losses,
    parameters,
    through_a_file,
)
from tests.optim.attached import (
    MAKERS,
    SHAPES,
    attached,
    build,
    params_of,
    run,
    scaled_by_hand,
    weights,
)


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_goes_on_from_a_state_dict_to_the_last_bit(name: str) -> None:
    optimizer, handle = attached(name, steps=40)
    plain = name not in ("galore", "apollo")  # they keep objects of their own in the state
    state, then, now = through_a_file(optimizer.state_dict(), weights_only=plain), weights(optimizer), handle.emotion
    torch.manual_seed(1)
    run(optimizer, handle, range(40, 50))
    logged = handle.metrics()
    for order in ("attach, load", "load, attach"):
        twin = build(name)
        for param, value in zip(params_of(twin), then, strict=True):
            param.data.copy_(value)
        again = attach(twin) if order == "attach, load" else None
        twin.load_state_dict(copy.deepcopy(state))
        again = again or attach(twin)
        assert again.emotion == now
        torch.manual_seed(1)
        run(twin, again, range(40, 50))
        assert_identical(weights(twin), weights(optimizer))
        assert (again.emotion, again.metrics()) == (handle.emotion, logged)


@pytest.mark.parametrize("name", ["adamw", "bitsandbytes"])
def test_a_state_is_the_optimizers_with_an_emotion_in_each_group_and_one_without_begins_afresh(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (optimizer, handle), plain = attached(name, "none", steps=6), build(name)
    run(plain, None, range(6))
    state, wanted = optimizer.state_dict(), copy.deepcopy(plain.state_dict())
    assert [group.pop("emotion")["observations"] for group in state["param_groups"]] == [6, 6]
    assert_identical(state, wanted)
    assert all(group["emotion"] is None for group in optimizer.param_groups)
    optimizer.load_state_dict(copy.deepcopy(wanted))
    assert handle.emotion.observations == 0
    assert caplog.text.count("holds no emotion: it starts afresh") == 1
    assert_identical(optimizer.state_dict()["state"], wanted["state"])
    run(optimizer, handle, range(6, 7))
    handle.observe(1000.0)  # waits for a step, and is forgotten when a state is loaded
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, handle, range(7, 8))
    assert handle.emotion.long < 10.0


def test_what_does_not_belong_is_refused_and_nothing_is_changed() -> None:
    (source, _), (optimizer, _), emo = attached("adamw", "v3.0", 3), attached(steps=2), EmoNavi(parameters(SHAPES))
    other_law = r"follows the law 'v3.0', the one attached here 'v3.1': attach law='v3.0'"
    assert_refused(optimizer, source.state_dict(), other_law)
    assert_refused(optimizer, emo.state_dict(), "was saved by EmoNavi, not by AdamW")
    assert_refused(emo, optimizer.state_dict(), "was saved by AdamW, not by EmoNavi")
    for name, value, said in (("short", "x", "is damaged"), ("window", [0.0], "is damaged"), ("format", 99, "mat 99")):
        state = copy.deepcopy(optimizer.state_dict())
        for group in state["param_groups"]:
            group["emotion"][name] = value
        assert_refused(optimizer, state, said)
    late = build()
    late.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match=other_law):
        attach(late, "v3.1")
    assert not late._optimizer_step_pre_hooks, "nothing of an emotion that was refused is left"
    assert attach(late, "v3.0").emotion.observations == 3


@pytest.mark.parametrize(("name", "flat"), [("sgd", True), ("adamw", False), ("adamw", True)])
def test_torchs_state_dicts_for_distributed_checkpoints_carry_it(name: str, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
        groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[1].parameters(), "lr": 0.002}]
        optimizer = MAKERS[name](groups)
        runs.append((model, optimizer, attach(optimizer)))
    (model, optimizer, handle), (other, twin, again) = runs
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a step without a loss, which torch takes to create the state
        get_optimizer_state_dict(model, optimizer)
        run(optimizer, handle, range(5))
        assert handle.emotion.observations == 5
        other.load_state_dict(model.state_dict())
        state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        set_optimizer_state_dict(other, twin, state, options=options)
    assert again.emotion == handle.emotion
    run(optimizer, handle, range(5, 8))
    run(twin, again, range(5, 8))
    assert_identical(weights(twin), weights(optimizer))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_is_the_optimizer_without_the_emotion_and_can_be_given_one(
    duplicate: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    (optimizer, handle), twin = attached(steps=4), build()
    copied = duplicate(optimizer)
    scaled_by_hand(twin, losses(4))
    run(copied, None, range(4, 6))
    run(twin, None, range(4, 6))
    assert_identical(weights(copied), weights(twin))
    assert handle.emotion.observations == 4
    copied.zero_grad()
    assert attach(copied).emotion.observations == 0
    caplog.clear()
    optimizer.load_state_dict(duplicate(optimizer).state_dict())
    assert "starts afresh" in caplog.text
    assert handle.emotion.observations == 0
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        duplicate(handle)
