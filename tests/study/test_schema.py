"""A study's YAML file: what is read, and what is refused in a sentence that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emo_hf.cli_errors import UserError
from emo_hf.study.schema import parse_study, read_study
from tests.study.studies import ARMS, FUNCTION, TASK, content, study

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))


def test_values_and_defaults_and_the_published_studies() -> None:
    for path in CONFIGS:
        assert read_study(path).reference in read_study(path).judged
    text = {"optim": "emonavi", "optim_args": "emo_law=none, use_shadow=true", "max_grad_norm": 0.5}
    law = {"optim": "emonavi", "optim_args": {"use_shadow": True}, "emo_law": "settle"}
    attached = {"optim": "sgd", "emotion": "settle", "emotion_args": {"guard": False}, "self_stop": False}  # from off
    both = {"optim": "adamw_torch", "average": True, "learning_rates": ["1e-5", "1e-4"]}
    config = {"config": "job.yaml", "max_steps": 50, "lora_r": 2}
    arms = {**ARMS, "text": text, "law": law, "attached": attached, "both": both}
    small = study(tasks={"toy": TASK, "job": config}, arms=arms, pairs=[["both+average", "both"]])
    assert (small.learning_rates, small.pairs) == ((1e-3, 1e-1), (("both+average", "both"),))
    assert (small.tasks["job"].steps, small.tasks["job"].options) == (50, {"lora_r": 2})
    assert small.arms["text"].optim_args == {"emo_law": "none", "use_shadow": "true"}
    assert small.arms["text"].options == {"max_grad_norm": 0.5}
    assert small.arms["law"].optim_args == {"use_shadow": True, "emo_law": "settle"}
    assert (small.arms["attached"].emotion_args, small.arms["attached"].self_stop) == ({"guard": False}, "off")
    assert small.arms["both"].learning_rates == (1e-5, 1e-4)
    assert list(small.judged) == ["adamw", "navi", "text", "law", "attached", "both", "both+average"]
    plain = parse_study({k: v for k, v in content().items() if k not in ("seeds", "evaluations")}, "plain")
    assert (plain.tune, plain.report, plain.evaluations, plain.arms["navi"].self_stop) == (1, 5, 8, "off")


def of_toy(**changes: Any) -> dict[str, Any]:
    return {"tasks": {"toy": {**TASK, **changes}}}


def of_navi(**changes: Any) -> dict[str, Any]:
    return {"arms": {**ARMS, "navi": {"optim": "sgd", **changes}}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": None}, "arms is missing"),
        ({"tasks": {}}, "tasks must be a mapping from names, with one at least"),
        ({"tasks": {"toy": {"steps": 8}}}, r"tasks\.toy must have either config .* or function .*, got neither"),
        (of_toy(config="a.yaml"), r"tasks\.toy must have either .*, got both"),
        (of_toy(function="tiny"), r"tasks\.toy\.function must be module:name .*'tiny'"),
        ({"tasks": {"toy": {"function": FUNCTION}}}, r"tasks\.toy\.steps is missing"),
        (of_toy(steps=0), r"tasks\.toy\.steps must be a whole number of at least 1, got 0"),
        ({"tasks": {"toy": TASK, "hard": {**TASK, "rates_of": "no"}}}, r"hard\.rates_of must be one of toy, got 'no'"),
        (of_toy(training={"optim": "sgd"}), r"tasks\.toy\.optim cannot be given here: it belongs to an arm"),
        ({"tasks": {"toy": {"config": "a.yaml", "seed": 3}}}, r"tasks\.toy\.seed .*each run has one of its own"),
        ({"arms": {"adamw": {}}}, r"arms\.adamw\.optim is missing"),
        ({"arms": {"adamw": 3}}, r"arms\.adamw must be a mapping, one `key: value` a line, got 3"),
        (of_navi(learning_rate=1), r"arms\.navi\.learning_rate cannot be given here: give learning_rates"),
        (of_navi(optim_args="a"), "optim_args must be a mapping or `key=value,…`, got 'a'"),
        (of_navi(self_stop="stop"), r"arms\.navi: .* for an emotion that is attached: give emotion"),
        (of_navi(emotion="settle", self_stop="now"), r"self_stop must be one of off, log, stop, got 'now'"),
        (of_navi(average=1), r"arms\.navi\.average must be true, false or only, got 1"),
        ({"arms": {"a": {"optim": "sgd", "average": True}, "a+average": {"optim": "sgd"}}}, "may not end as that of"),
        ({"reference": "other"}, "reference: must name one of the arms adamw, navi, got 'other'"),
        ({"pairs": [["navi", "other"]]}, "pairs: must name one of the arms"),
        ({"pairs": [["navi"]]}, r"pairs must be a list of \[arm, another arm\], got \[\['navi'\]\]"),
        ({"learning_rates": [1e-2, 1e-3]}, r"learning_rates must be the lowest and .*, got \[0.01, 0.001\]"),
        ({"seeds": {"tunes": 1}}, r"unknown key seeds\.tunes \(did you mean seeds\.tune\?\)"),
        ({"evaluation": 3}, r"unknown key evaluation \(did you mean evaluations\?\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        study(**changes)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    for text, said in ((None, "no such file"), ("tasks: [", "is not valid"), ("- 1", "must hold a mapping")):
        if text is not None:
            bad.write_text(text)
        with pytest.raises(UserError, match=rf"bad\.yaml: .*{said}"):
            read_study(bad)
