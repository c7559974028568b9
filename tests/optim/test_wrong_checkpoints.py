"""A state that does not belong, or is damaged, is refused with what to do, and nothing changes."""

from __future__ import annotations

import copy
import math
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import emo_hf
from emo_hf import EmoFact, EmoNavi, EmoOptimizer, EmoTion
from emo_hf.laws.v3_1 import V3_1
from tests import tiny
from tests.emo_cases import (
    OPTIMIZERS,
    SHAPES,
    assert_refused,
    build,
    each_optimizer,
    parameters,
    run,
    two_groups,
)

State = dict[str, Any]
Damage = Callable[[State], Any]


def refused(optimizer: EmoOptimizer, state: State, said: str) -> None:
    """A state is refused, and neither options, emotion nor a loss that waits is changed."""
    optimizer.observe(3.0)
    before = [dict(group) for group in optimizer.param_groups], optimizer.emotion
    assert_refused(optimizer, state, said)
    assert ([dict(group) for group in optimizer.param_groups], optimizer.emotion) == before
    optimizer.step()
    assert optimizer.emotion.observations == before[1].observations + 1, "the loss that waited was lost"


def in_emotion(**changes: Any) -> Damage:
    def damage(state: State) -> None:
        for group in state["param_groups"]:
            for name, value in changes.items():
                group["emotion"].pop(name) if value is ... else group["emotion"].update({name: value})

    return damage


def in_group(**changes: Any) -> Damage:
    return lambda state: state["param_groups"][1].update(changes)


def in_tensor(change: Callable[[Any], Any], name: str = "exp_avg") -> Damage:
    return lambda state: state["state"][0].update({name: change(state["state"][0].get(name))})


NEEDED = ["format", "optimizer", *(name for name in V3_1().state_dict() if name != "coefficient")]
PLAIN_WORDS = r"damaged|not the state of|needs \[\]|follows the law"

WRONG: list[tuple[Damage, str]] = [
    (in_group(betas=(2.0, 0.9)), r"beta1 must be in \[0, 1\), got 2.0"),
    (in_group(betas="0.9,0.99"), "betas must be a pair"),
    (in_group(eps=-1.0), "eps must be .*-1.0"),
    (in_group(weight_decay=math.nan), "weight_decay must be .*nan"),
    (in_group(lr="0.1"), "lr must be .*'0.1'"),
    (in_group(use_shadow=1), "use_shadow=1 is not acceptable: it takes true or false"),
    (in_tensor(lambda _: torch.ones(3, 4), "momentum_buffer"), "'momentum_buffer' .* does not know"),
    (in_tensor(lambda old: torch.zeros(1).expand(old.shape)), "'exp_avg' must be a dense .*expanded"),
    (in_tensor(lambda old: old.to_sparse()), "'exp_avg' must be a dense .*sparse"),
    (in_tensor(lambda old: old.long()), "'exp_avg' must be .*int64"),
    (in_tensor(lambda _: torch.ones(2, 2), "shadow"), "'shadow' has the shape"),
    (in_emotion(format=99), "format 99, this version of emo_hf reads 1: use the version that saved it"),
    (in_emotion(format="1.0"), "format '1.0', .* or resume from the weights only"),
    (in_emotion(law="v9"), "law 'v9'"),
    (in_emotion(version="v3.0"), "saved by EmoNavi v3.0, not by EmoNavi v3.1: make the optimizer with version=v3.0"),
    (in_emotion(coefficients=[1.0]), "damaged|values"),
    *((in_emotion(**{name: ...}), name) for name in NEEDED),
    *((in_emotion(**{name: value}), PLAIN_WORDS)
      for name in ("coefficients", "average_age", "average_shown", "window", "observations", "rule", "law")
      for value in (None, -5, "x", [1], {"a": 1}, math.nan)
      if (name, value) != ("rule", None)),  # torch drops what is empty where it flattens a state
    (lambda state: state.update(state=[1]), PLAIN_WORDS),
    (lambda state: state["state"].update({0: "x"}), PLAIN_WORDS),
    (lambda state: state.update(param_groups=["x"]), PLAIN_WORDS),
    (lambda state: state["param_groups"][0].update(params=5), PLAIN_WORDS),
    (lambda state: state["param_groups"][0].update(emotion=5), PLAIN_WORDS),
]  # fmt: skip


def test_a_damaged_state_is_refused_with_what_is_wrong_and_nothing_changes() -> None:
    source, optimizer = build(EmoNavi), build(EmoNavi)
    run(source, range(4))
    run(optimizer, range(2))
    for damage, said in WRONG:
        state = copy.deepcopy(source.state_dict())
        damage(state)
        refused(optimizer, state, said)


def test_what_a_rule_remembers_has_to_be_there_and_is_a_number_or_not_known_yet() -> None:
    source, optimizer = build(EmoTion), build(EmoTion)
    run(source, range(3))
    run(optimizer, range(2))
    for name in ("freshness", "norm"):
        for value in ("x", math.nan, -1.0, math.inf, None, True, [1.0], ...):
            state = copy.deepcopy(source.state_dict())
            memory = state["param_groups"][0]["emotion"]["rule"]
            in_emotion(rule={**memory, name: value} if value is not ... else {"freshness": 1.0})(state)
            if name == "norm" and value is None:
                build(EmoTion).load_state_dict(state)
            elif value is ...:
                refused(optimizer, state, r"has \['freshness'\] .* needs \['freshness', 'norm'\]")
            else:
                refused(optimizer, state, "in what the rule keeps")


@pytest.mark.parametrize("state", [{}, {"param_groups": []}, {"state": {}, "param_groups": [{}]}, [], None, "x"])
def test_what_is_no_optimizer_state_at_all_is_refused_in_words(state: Any) -> None:
    for cls in (EmoNavi, EmoFact):
        assert_refused(cls(parameters()), state, re.escape(f"not the state of {cls.__name__}"))


@pytest.mark.parametrize(("cls", "other"), list(zip(OPTIMIZERS, OPTIMIZERS[1:] + OPTIMIZERS[:1], strict=True)))
def test_the_state_of_another_optimizer_is_refused_by_name(cls: type[EmoOptimizer], other: type[EmoOptimizer]) -> None:
    source, optimizer = build(other), build(cls)
    run(source, range(2))
    run(optimizer, range(2))
    said = f"saved by {other.__name__}, not by {cls.__name__}: train on with {other.__name__}, or resume from the w"
    refused(optimizer, source.state_dict(), said)
    adamw = torch.optim.AdamW(two_groups(parameters(SHAPES)), lr=0.5)
    said = f"holds no emotion.*not saved by {cls.__name__}.*load the model and leave the optimizer state out"
    refused(optimizer, adamw.state_dict(), said)


def groups(*shapes: tuple[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(shape))], "name": name} for name, shape in shapes]


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (lambda: groups(("a", (3,)), ("b", (2, 3)), ("c", (1,))), "saved: .*here: "),
        (lambda: [*groups(("a", (3,))), {"params": parameters(), "name": "b"}], "saved: .*here"),
        (lambda: groups(("b", (3,)), ("a", (2, 3))), "saved: a of 1 .*, b of 1 .*; here: b .*, a "),
        (lambda: groups(("a", (3,)), ("b", (3, 2))), r"has the shape|\(2, 3\).*\(3, 2\)"),
    ],
    ids=["a group more", "a parameter more", "swapped groups", "another shape"],
)
@each_optimizer
def test_a_state_of_other_parameters_is_refused_before_anything_changes(
    cls: type[EmoOptimizer], here: Callable[[], list[dict[str, Any]]], said: str
) -> None:
    source, optimizer = cls(groups(("a", (3,)), ("b", (2, 3)))), cls(here())
    run(source, range(3))
    if not any(source.state.values()) and "shape" in said:
        pytest.skip("this rule keeps nothing of the shape of a parameter")
    run(optimizer, range(2))
    assert_refused(optimizer, source.state_dict(), f"(?s)({said}).*resume from the weights only")


@each_optimizer
def test_a_state_whose_tensors_are_missing_is_refused_before_anything_changes(cls: type[EmoOptimizer]) -> None:
    source, optimizer = (cls(parameters(), use_shadow=True) for _ in range(2))
    run(source, range(9))
    state = source.state_dict()
    first = state["state"][0]
    without = [dict.fromkeys(first)]
    if list(first) != ["shadow"]:  # which can be made anew
        without.append(dict(list(first.items())[1:]))
    for damaged in without:
        assert_refused(optimizer, {**state, "state": {**state["state"], 0: damaged}}, r"lacks|damaged")


# Through the Trainer


@pytest.fixture(scope="module", autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


@pytest.fixture(scope="module", params=["emonavi", "adamw_torch"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "weight_decay": 0.1}
    tiny.trainer(folder, optim=request.param, **settings).train()
    return folder / "checkpoint-2"


class Malice:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.file), "w"))


UNREADABLE = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)
CASES: list[tuple[str, Any, Any, str]] = [
    ("adamw_torch", None, ValueError, "holds no emotion.*not saved by EmoNavi.*load the model and leave"),
    ("emonavi", in_emotion(format=None), ValueError, "format None, .* use the version that saved it"),
    ("emonavi", lambda state: state.update(extra=Malice(Path("harm"))), UNREADABLE, "(?i)weights.only"),
    ("emonavi", in_emotion(window=Malice(Path("harm"))), UNREADABLE, "(?i)weights.only"),
    *(("emonavi", share, UNREADABLE, "") for share in (0.0, 0.5, 0.99)),
]


def test_the_trainer_refuses_a_checkpoint_that_does_not_belong_or_is_cut_off_or_malicious(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(trained / "optimizer.pt", weights_only=True)
    found = state["param_groups"][0].get("emotion")
    for number, (optim, damage, error, said) in enumerate(CASES):
        if (optim == "emonavi") is not bool(found):
            continue
        checkpoint = tmp_path / str(number) / "checkpoint-2"
        shutil.copytree(trained, checkpoint)
        file = checkpoint / "optimizer.pt"
        if isinstance(damage, float):
            file.write_bytes(file.read_bytes()[: int(damage * file.stat().st_size)])
        elif damage is not None:
            damaged = copy.deepcopy(state)
            damage(damaged)
            torch.save(damaged, file)
        trainer = tiny.trainer(tmp_path / "again", max_steps=4, weight_decay=0.1)
        with pytest.raises(error, match=said or None):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert not Path("harm").exists()
