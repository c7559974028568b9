"""A checkpoint that does not belong is refused with a sentence that says what to do, through the Trainer as well."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import emo_hf
from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from tests import tiny
from tests.emo_cases import assert_identical, each_optimizer, parameters, run, snapshot


@pytest.fixture(autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


def trained(folder: Path, **changes: Any) -> Path:
    """The last checkpoint of a short run."""
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    tiny.trainer(folder, **settings | changes).train()
    return folder / "checkpoint-2"


def resume(checkpoint: Path, **changes: Any) -> None:
    tiny.trainer(checkpoint.parent / "again", **{"max_steps": 4} | changes).train(
        resume_from_checkpoint=str(checkpoint)
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("adamw_torch", "emonavi", "holds no emotion.*not saved by EmoNavi.*load the model and leave the optimizer"),
        ("emolynx", "emofact", "saved by EmoLynx, not by EmoFact: train on with EmoLynx, or resume from the weights"),
        ("emofact", "emonavi", "saved by EmoFact, not by EmoNavi"),
    ],
)
def test_the_trainer_refuses_the_checkpoint_of_another_optimizer(
    before: str, after: str, said: str, tmp_path: Path
) -> None:
    checkpoint = trained(tmp_path, optim=before)
    with pytest.raises(ValueError, match=said):
        resume(checkpoint, optim=after)


def test_the_trainer_refuses_other_parameter_groups_and_names_both(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, weight_decay=0.1)
    model = tiny.classifier()
    for name, param in model.named_parameters():
        param.requires_grad = name.startswith("classifier")
    with pytest.raises(ValueError, match=r"saved: .*\d+ parameters.*here: .*\d+ parameter.*weights only"):
        resume(checkpoint, model=model, weight_decay=0.1)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            0,
            "format 0, this version of emo_hf reads 1: use the version that saved it, or resume from the weights only",
        ),
        (2, "format 2, this version of emo_hf reads 1: use the version that saved it"),
        ("1.0", "format '1.0', .* use the version that saved it"),
        (None, "format None, .* use the version that saved it"),
    ],
    ids=str,
)
def test_the_trainer_refuses_a_checkpoint_of_an_older_or_newer_format(found: Any, said: str, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for group in state["param_groups"]:
        group["emotion"]["format"] = found
    torch.save(state, checkpoint / "optimizer.pt")
    with pytest.raises(ValueError, match=said):
        resume(checkpoint)


def test_a_truncated_optimizer_file_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    file = checkpoint / "optimizer.pt"
    content = file.read_bytes()
    for share in (0.0, 0.5, 0.99):
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises((RuntimeError, OSError, EOFError, pickle.UnpicklingError)):
            resume(checkpoint)


class Malice:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("where", ["beside", "inside the emotion"])
def test_a_malicious_checkpoint_is_refused_and_runs_nothing(where: str, tmp_path: Path) -> None:
    checkpoint, trace = trained(tmp_path), tmp_path / "harm"
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    if where == "beside":
        state["extra"] = Malice(trace)
    else:
        for group in state["param_groups"]:
            group["emotion"]["window"] = Malice(trace)
    torch.save(state, checkpoint / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"weights_only|Weights only"):
        resume(checkpoint)
    assert not trace.exists()


def named_groups(*shapes: tuple[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(shape))], "name": name} for name, shape in shapes]


def lacking_a_tensor(state: dict[str, Any]) -> None:
    del state["state"][0][next(iter(state["state"][0]))]


def without_values(state: dict[str, Any]) -> None:
    state["state"][0] = {key: None for key in state["state"][0]}


MISMATCHES: list[tuple[str, Callable[[], list[dict[str, Any]]], str]] = [
    ("a group more", lambda: named_groups(("a", (3,)), ("b", (2, 3)), ("c", (1,))), "saved: .*here: "),
    ("a parameter more", lambda: [*named_groups(("a", (3,))), {"params": parameters(), "name": "b"}], "saved: .*here"),
    (
        "swapped groups",
        lambda: named_groups(("b", (3,)), ("a", (2, 3))),
        "saved: a of 1 .*, b of 1 .*; here: b .*, a ",
    ),
    ("another shape", lambda: named_groups(("a", (3,)), ("b", (3, 2))), r"\(2, 3\).*\(3, 2\)|shape"),
]


@pytest.mark.parametrize(("make", "said"), [entry[1:] for entry in MISMATCHES], ids=[entry[0] for entry in MISMATCHES])
@each_optimizer
def test_a_state_of_other_parameters_is_refused_before_anything_changes(
    cls: type[EmoOptimizer], make: Callable[[], list[dict[str, Any]]], said: str
) -> None:
    source = cls(named_groups(("a", (3,)), ("b", (2, 3))))
    run(source, range(3))
    if not any(source.state.values()) and "shape" in said:
        pytest.skip("this rule keeps nothing of the shape of a parameter")
    optimizer = cls(make())
    run(optimizer, range(2))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=said) as caught:
        optimizer.load_state_dict(source.state_dict())
    assert "resume from the weights only" in str(caught.value)
    assert_identical(snapshot(optimizer), before)


@pytest.mark.parametrize("damage", [lacking_a_tensor, without_values])
@each_optimizer
def test_a_state_whose_tensors_are_missing_is_refused_before_anything_changes(
    cls: type[EmoOptimizer], damage: Callable[[dict[str, Any]], None]
) -> None:
    source, optimizer = (cls(parameters(), use_shadow=True) for _ in range(2))
    run(source, range(9))
    if damage is lacking_a_tensor and list(source.state[source.param_groups[0]["params"][0]]) == ["shadow"]:
        pytest.skip("this rule needs no tensors, and a shadow can be made anew")
    state = source.state_dict()
    state["state"] = {key: dict(value) for key, value in state["state"].items()}
    damage(state)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"lacks|damaged"):
        optimizer.load_state_dict(state)
    assert_identical(snapshot(optimizer), before)


def test_the_names_of_groups_may_be_new_but_not_others() -> None:
    """A state of groups without names fits groups with names, and the other way round."""
    named, plain = EmoLynx(named_groups(("a", (3,)))), EmoLynx([nn.Parameter(torch.ones(3))])
    for source, target in ((named, plain), (plain, named)):
        run(source, range(2))
        target.load_state_dict(source.state_dict())
        assert target.emotion == source.emotion


@pytest.mark.parametrize("state", [{}, {"param_groups": []}, {"state": {}, "param_groups": [{}]}, [], None, "x"])
def test_what_is_no_optimizer_state_at_all_is_refused_in_words(state: Any) -> None:
    for cls in (EmoNavi, EmoFact):
        with pytest.raises(ValueError, match=re.escape(f"not the state of {cls.__name__}")):
            cls(parameters()).load_state_dict(state)
