"""A study's YAML file: what is read, and what is refused in a sentence that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emo_hf.cli_errors import UserError
from emo_hf.study.schema import parse_study, read_study
from tests.study.studies import ARMS, FUNCTION, content, study

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_published_studies_are_read(path: Path) -> None:
    found = read_study(path)
    assert found.name == path.stem
    assert found.reference in found.judged


def test_values_and_defaults() -> None:
    arms = {
        **ARMS,
        "text": {"optim": "emonavi", "optim_args": "emo_law=none, use_shadow=true", "max_grad_norm": 0.5},
        "law": {"optim": "emonavi", "emo_law": "settle"},
        "attached": {
            "optim": "adamw_torch",
            "emotion": "settle",
            "emotion_args": {"guard": False},
            "self_stop": "off",
        },
        "both": {"optim": "adamw_torch", "average": True, "learning_rates": ["1e-5", "1e-4"]},
    }
    small = study(arms=arms, pairs=[["both+average", "both"]])
    assert small.learning_rates == (1e-3, 1e-1)
    assert small.arms["text"].optim_args == {"emo_law": "none", "use_shadow": "true"}
    assert small.arms["text"].options == {"max_grad_norm": 0.5}
    assert small.arms["law"].optim_args == {"emo_law": "settle"}
    assert small.arms["attached"].emotion_args == {"guard": False}
    assert small.arms["attached"].self_stop == "off"
    assert small.arms["both"].learning_rates == (1e-5, 1e-4)
    assert list(small.judged) == ["adamw", "navi", "text", "law", "attached", "both", "both+average"]
    assert small.fresh_seeds(small.tasks["toy"]) == [1001, 1002, 1003]
    plain = parse_study({k: v for k, v in content().items() if k not in ("seeds", "evaluations")}, "plain")
    assert (plain.tune, plain.report, plain.evaluations) == (1, 5, 8)


TASK = {"function": FUNCTION, "steps": 8}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {}}, "tasks must hold at least one"),
        ({"tasks": {"toy": {"steps": 8}}}, r"tasks\.toy must have either config .* or function .*, got neither"),
        ({"tasks": {"toy": {**TASK, "config": "a.yaml"}}}, r"tasks\.toy must have either .*, got both"),
        ({"tasks": {"toy": {"function": "tiny", "steps": 8}}}, r"tasks\.toy\.function must be module:name .*'tiny'"),
        ({"tasks": {"toy": {"function": FUNCTION}}}, r"tasks\.toy\.steps is missing"),
        ({"tasks": {"toy": {**TASK, "steps": 0}}}, r"tasks\.toy\.steps must be a whole number of at least 1, got 0"),
        ({"tasks": {"toy": {**TASK, "seeds": "two"}}}, r"tasks\.toy\.seeds must be a whole number"),
        ({"tasks": {"toy": {**TASK, "rates_of": "other"}}}, r"tasks\.toy\.rates_of must be one of .*, got 'other'"),
        ({"tasks": {"toy": {**TASK, "training": {"optim": "sgd"}}}}, r"tasks\.toy\.optim .*belongs to an arm"),
        ({"tasks": {"toy": {"config": "a.yaml", "seed": 3}}}, r"tasks\.toy\.seed .*each run has one of its own"),
        ({"tasks": {"toy": {"config": "a.yaml", "steps": 3, "max_steps": 3}}}, "the same, give one of them"),
        ({"tasks": {"two\nlines": TASK}}, "a name must be of 1 to 60 characters in one line"),
        ({"arms": {"adamw": {}}}, r"arms\.adamw\.optim must be a name .*, got None"),
        ({"arms": {**ARMS, "navi": {"optim": "emonavi", "learning_rate": 1}}}, r"arms\.navi\.learning_rate .* give"),
        ({"arms": {**ARMS, "navi": {"optim": "emonavi", "seed": 1}}}, r"arms\.navi\.seed .* give seeds"),
        ({"arms": {**ARMS, "navi": {"optim": "emonavi", "optim_args": "a"}}}, "optim_args must be a mapping or"),
        (
            {"arms": {**ARMS, "a": {"optim": "sgd", "emotion": 3}}},
            r"arms\.a\.emotion must be the name of a law, got 3",
        ),
        ({"arms": {**ARMS, "a": {"optim": "sgd", "self_stop": "stop"}}}, "for an emotion that is attached"),
        ({"arms": {**ARMS, "a": {"optim": "sgd", "emotion": "settle", "self_stop": "now"}}}, "one of off, log, stop"),
        ({"arms": {**ARMS, "a": {"optim": "sgd", "average": 1}}}, "average must be one of False, True, only, got 1"),
        ({"arms": {**ARMS, "a": {"optim": "sgd", "callback": "mine"}}}, r"arms\.a\.callback must be module:name"),
        (
            {"arms": {**ARMS, "a": {"optim": "sgd", "average": True}, "a+average": {"optim": "sgd"}}},
            "may not end as that of another arm",
        ),
        ({"reference": "other"}, "reference: must name one of the arms adamw, navi, got 'other'"),
        ({"pairs": [["navi", "other"]]}, "pairs: must name one of the arms"),
        ({"pairs": [["navi"]]}, r"pairs must be a list of \[arm, another arm\]"),
        ({"pairs": "navi"}, "pairs must be a list, got 'navi'"),
        ({"learning_rates": [1e-3]}, r"learning_rates must be the lowest and the highest rate.*, got \[0.001\]"),
        ({"learning_rates": [1e-2, 1e-3]}, "must be the lowest and the highest"),
        ({"learning_rates": [0, 1]}, "must be the lowest and the highest"),
        ({"seeds": {"tune": True}}, "seeds.tune must be a whole number"),
        ({"seeds": {"tunes": 1}}, r"unknown key seeds\.tunes \(did you mean seeds\.tune\?\)"),
        ({"evaluation": 3}, r"unknown key evaluation \(did you mean evaluations\?\)"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        study(**changes)


def test_a_key_that_is_missing_is_named() -> None:
    for key in ("tasks", "arms", "learning_rates", "reference"):
        given = content()
        del given[key]
        with pytest.raises(UserError, match=f"{key} is missing"):
            parse_study(given, "small")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_study(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    for text, said in (("tasks: [", "cannot be read"), ("- 1", "the study must be a mapping"), ("[" * 1500, "read")):
        bad.write_text(text)
        with pytest.raises(UserError, match=rf"bad\.yaml: .*{said}"):
            read_study(bad)
