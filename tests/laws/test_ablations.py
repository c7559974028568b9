"""A constant factor, and the factors of another run, in the place of any law's."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from emo_hf.laws import LAWS, make_law, read_law
from emo_hf.laws.ablation import read_ablation

LOSSES = [2.0, 1.5, 1.0, 0.5, 0.4, 0.4]
each_law = pytest.mark.parametrize("law", LAWS)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    file = tmp_path / "runs.jsonl"
    lines: list[dict[str, Any]] = [
        {"id": "a", "emotion": {"factors": [0.5, 9.0]}},
        {"id": "a", "emotion": {"factors": [0.1, 0.2, 0.3], "decay_factors": [0.01, 0.02, 0.03], "floor": 1e-8}},
        {"id": "deaf", "emotion": None},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": "torn')
    return file


@each_law
def test_a_constant_takes_the_place_of_every_laws_factors_and_of_nothing_else(law: str) -> None:
    own, constant = make_law(law, law, {}), make_law("constant:1.3", law, {})
    for loss in [*LOSSES, math.nan]:
        expected, decision = own.feel(loss), constant.feel(loss)
        assert (decision.coefficient, decision.decay_factor, decision.floor) == (1.3, 1.0, 0.0)
        assert (decision.scalar, decision.shadow) == (expected.scalar, expected.shadow)
    assert constant.label == constant.view().law == "constant:1.3"


@each_law
def test_a_replay_gives_the_factors_of_the_last_run_of_that_name_and_then_holds_the_last(law: str, runs: Path) -> None:
    replay = make_law(f"replay:{runs}#a", law, {})
    decisions = [replay.feel(loss) for loss in LOSSES]
    assert [decision.coefficient for decision in decisions] == [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]
    assert [decision.decay_factor for decision in decisions] == [0.01, 0.02, 0.03, 0.03, 0.03, 0.03]
    assert {decision.floor for decision in decisions} == {1e-8}


def test_a_loss_that_is_not_finite_takes_a_factor_of_its_step(runs: Path) -> None:
    replay = make_law(f"replay:{runs}#a", "v3.1", {})
    assert [replay.feel(loss).coefficient for loss in (1.0, math.nan, 1.0)] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda law: pickle.loads(pickle.dumps(law))])
def test_a_copy_and_a_restored_law_go_on_at_their_own_step(copied: Any, runs: Path) -> None:
    name = f"replay:{runs}#a"
    law = make_law(name, "v3.1", {})
    law.feel(1.0)
    other = copied(law)
    assert other.feel(1.0).coefficient == 0.2
    restored = make_law(name, "v3.1", {})
    restored.load_state_dict(json.loads(json.dumps(law.state_dict())))
    assert restored.feel(1.0).coefficient == 0.2
    assert law.feel(1.0).coefficient == 0.2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("constant:fast", "constant:X takes a factor X that is a number of at least 0, got 'constant:fast'"),
        ("constant:-1", "at least 0"),
        ("constant:inf", "at least 0"),
        ("constant:nan", "at least 0"),
        ("replay:nowhere.jsonl#a", "takes a file of runs that can be read, got 'replay:nowhere.jsonl#a'"),
    ],
)
def test_a_name_that_cannot_be_read_says_what_it_takes(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_ablation(name)
    with pytest.raises(ValueError, match=said):
        make_law(name, "v3.1", {})


def test_a_run_that_is_not_there_is_named_with_those_that_are(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'b'; it holds: a, deaf"):
        read_ablation(f"replay:{runs}#b")
    with pytest.raises(ValueError, match="has no factors to replay, as its optimizer had no emotion"):
        read_ablation(f"replay:{runs}#deaf")
    with pytest.raises(ValueError, match="takes the id of a run"):
        read_ablation(f"replay:{runs}")


def test_names_of_laws_are_checked_with_the_ablations_that_there_are(runs: Path) -> None:
    for name in (*LAWS, "none", "constant:0.5", f"replay:{runs}#a"):
        assert read_law(name) == name
    assert read_ablation("v3.1") is None
    with pytest.raises(ValueError, match=r"^one of v3\.0, .*constant:X, replay:FILE#RUN, none$"):
        read_law("v4")
