"""A state is checked as the constructor's options are: what would break the run later is refused when it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from emo_hf import EmoNavi, EmoTion
from tests.emo_cases import assert_identical, build, run, snapshot


def option(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def damage(state: dict[str, Any]) -> None:
        state["param_groups"][1][name] = value

    return damage


def moment(value: Any, name: str = "exp_avg") -> Callable[[dict[str, Any]], None]:
    def damage(state: dict[str, Any]) -> None:
        old = state["state"][0].get(name)
        state["state"][0][name] = value(old) if callable(value) else value

    return damage


WRONG: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("betas-of-2", option("betas", (2.0, 0.9)), r"beta1 must be in \[0, 1\), got 2.0"),
    ("betas-as-text", option("betas", "0.9,0.99"), "betas must be a pair"),
    ("eps-below-0", option("eps", -1.0), "eps must be .*-1.0"),
    ("decay-nan", option("weight_decay", float("nan")), "weight_decay must be .*nan"),
    ("lr-as-text", option("lr", "0.1"), "lr must be .*'0.1'"),
    ("shadow-as-number", option("use_shadow", 1), "use_shadow=1 is not acceptable: it takes true or false"),
    ("unknown-tensor", moment(lambda _: torch.ones(3, 4), "momentum_buffer"), "'momentum_buffer' .* does not know"),
    ("expanded", moment(lambda old: torch.zeros(1).expand(old.shape)), "'exp_avg' must be a dense .*expanded"),
    ("sparse", moment(lambda old: old.to_sparse()), "'exp_avg' must be a dense .*sparse"),
    ("whole-numbers", moment(lambda old: old.long()), "'exp_avg' must be .*int64"),
    ("shadow-of-another-shape", moment(torch.ones(2, 2), "shadow"), "'shadow' has the shape"),
]


@pytest.mark.parametrize(("damage", "said"), [entry[1:] for entry in WRONG], ids=[entry[0] for entry in WRONG])
def test_a_damaged_state_is_refused_with_what_is_wrong_and_nothing_changes(
    damage: Callable[[dict[str, Any]], None], said: str
) -> None:
    source, optimizer = build(EmoNavi), build(EmoNavi)
    run(source, range(4))
    run(optimizer, range(2))
    state = copy.deepcopy(source.state_dict())
    damage(state)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(state)
    assert_identical(snapshot(optimizer), before)


@pytest.mark.parametrize("value", ["x", float("nan"), -1.0, float("inf"), None, True, [1.0]], ids=repr)
@pytest.mark.parametrize("name", ["freshness", "norm"])
def test_what_a_rule_remembers_is_a_number_or_not_known_yet(name: str, value: Any) -> None:
    source, optimizer = build(EmoTion), build(EmoTion)
    run(source, range(3))
    run(optimizer, range(2))
    state = copy.deepcopy(source.state_dict())
    for group in state["param_groups"]:
        group["emotion"]["rule"][name] = value
    before = snapshot(optimizer)
    if name == "norm" and value is None:
        optimizer.load_state_dict(state)
        return
    with pytest.raises(ValueError, match="in what the rule keeps"):
        optimizer.load_state_dict(state)
    assert_identical(snapshot(optimizer), before)


def in_state(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(state=value(state["state"]))


@pytest.mark.parametrize(
    "damage",
    [
        in_state(lambda old: [1]),
        in_state(lambda old: {**old, 0: "x"}),
        lambda state: state.update(param_groups=["x"]),
        lambda state: state["param_groups"][0].update(params=5),
        lambda state: state["param_groups"][0].update(emotion=5),
        *[
            lambda state, name=name, value=value: [
                group["emotion"].update({name: value}) for group in state["param_groups"]
            ]
            for name in ("coefficients", "average_age", "average_shown", "window", "observations", "rule", "law")
            for value in (None, -5, "x", [1], {"a": 1}, float("nan"))
            if (name, value) != ("rule", None)  # torch drops what is empty where it flattens a state
        ],
    ],
)
def test_whatever_is_wrong_is_said_in_a_sentence_and_nothing_changes(damage: Callable[[dict[str, Any]], Any]) -> None:
    source, optimizer = build(EmoNavi), build(EmoNavi)
    run(source, range(4))
    run(optimizer, range(2))
    state = copy.deepcopy(source.state_dict())
    damage(state)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"damaged|not the state of|needs \[\]|follows the law"):
        optimizer.load_state_dict(state)
    assert_identical(snapshot(optimizer), before)


def test_what_a_rule_remembers_for_the_optimizer_as_a_whole_has_to_be_there() -> None:
    source, optimizer = build(EmoTion), build(EmoTion)
    run(source, range(3))
    state = copy.deepcopy(source.state_dict())
    for group in state["param_groups"]:
        group["emotion"]["rule"].pop("norm", None)
    with pytest.raises(ValueError, match=r"has \['freshness'\] .* needs \['freshness', 'norm'\]"):
        optimizer.load_state_dict(state)
