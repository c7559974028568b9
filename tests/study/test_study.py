# ruff: noqa: E501  a case a line
"""A study says what is wrong with it by the key, what was given and what is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emo_hf.study.errors import StudyError
from emo_hf.study.main import _check
from emo_hf.study.study import parse_study, read_study
from tests.study.studies import ARMS, FUNCTION, content, study

ROOT = Path(__file__).parents[2]

TOY = {"function": FUNCTION, "steps": 8}


def arms(**changes: Any) -> dict[str, Any]:
    return {"arms": {**ARMS, **changes}}


def faults(twin: dict[str, Any] = TOY, **changes: Any) -> dict[str, Any]:
    given = {"kind": "nan", "clean": "toy", "count": 2, **changes}
    return {"tasks": {"toy": twin, "ill": {**TOY, "faults": {key: v for key, v in given.items() if v is not None}}}}


WRONG = [
    pytest.param({"rates": [1]}, r"unknown key rates \(did you mean|unknown key rates \(known: tasks", id="unknown"),
    pytest.param({"evaluation": 3}, r"unknown key evaluation \(did you mean evaluations\?\)", id="misspelt"),
    pytest.param({"tasks": None}, "tasks must be a mapping, .*got None", id="no tasks"),
    pytest.param({"tasks": {}}, "tasks must hold at least one, got {}", id="empty tasks"),
    pytest.param({"tasks": {"a/b": TOY}}, "tasks: a name must be of letters.*got 'a/b'", id="name"),
    pytest.param({"tasks": {"toy": {}}}, "tasks.toy must have either config .* or function .*, got neither", id="source"),
    pytest.param({"tasks": {"toy": {**TOY, "config": "x"}}}, "tasks.toy must have either.*got both", id="both sources"),
    pytest.param({"tasks": {"toy": {"function": "module"}}}, "tasks.toy.function must be module:name.*'module'", id="function"),
    pytest.param({"tasks": {"toy": {"function": FUNCTION}}}, "tasks.toy.steps is missing", id="no steps"),
    pytest.param({"tasks": {"toy": {**TOY, "steps": 0}}}, "tasks.toy.steps must be a whole number of at least 1, got 0", id="0 steps"),
    pytest.param({"tasks": {"toy": {"config": "x", "optim": "sgd"}}}, "tasks.toy.optim cannot be given here", id="optim"),
    pytest.param({"tasks": {"toy": {"config": "x", "seed": 1}}}, "tasks.toy.seed cannot be given here", id="seed"),
    pytest.param(arms(x={}), "arms.x.optim must be a name such as .*got None", id="no optim"),
    pytest.param(arms(x={"optim": "sgd", "learning_rate": 1}), "arms.x.learning_rate cannot.*learning_rates", id="one rate"),
    pytest.param(arms(x={"optim": "sgd", "optim_args": "a"}), "arms.x.optim_args must be a mapping, or .*got 'a'", id="args"),
    pytest.param(arms(x={"optim": "sgd", "self_stop": "stop"}), "arms.x.self_stop is for an attached emotion", id="self_stop"),
    pytest.param(arms(x={"optim": "sgd", "emotion": "v3.1", "self_stop": "now"}), "off, log, stop, got 'now'", id="action"),
    pytest.param(arms(x={"optim": "sgd", "emotion": "v3.1", "emo_law": "none"}), "arms.x must have emotion .* got both", id="two laws"),
    pytest.param(arms(x={"optim": "emonavi", "emo_law": "replay:x"}), "arms.x: 'replay:x' must name an arm whose factors are its own, got 'x'", id="self"),
    pytest.param(arms(x={"optim": "emonavi", "emo_law": "replay:y"}), "arms.x: .*FILE#RUN.*or the name of an arm: adamw, navi, x", id="replay"),
    pytest.param(arms(x={"optim": "emonavi", "emo_law": "constant:-1"}), "arms.x: constant:X takes a factor.*'constant:-1'", id="factor"),
    pytest.param(arms(x={"optim": "sgd", "guard": "clip"}), "arms.x.guard must be one of zclip, skip, got 'clip'", id="guard"),
    pytest.param({"tasks": {"ill": {**TOY, "faults": "nan"}}}, "tasks.ill.faults must be a mapping, .*got 'nan'", id="faults"),
    pytest.param(faults(kind=None), "tasks.ill.faults.kind is missing: give one of poisoned, nan, inf, rate", id="no kind"),
    pytest.param(faults(kind="bad"), "tasks.ill.faults.kind must be one of poisoned, nan, inf, rate, got 'bad'", id="kind"),
    pytest.param(faults(clean=None), "tasks.ill.faults.clean must name the task .*got None", id="no twin"),
    pytest.param(faults(clean="toys"), r"tasks.ill.faults.clean must be a task without faults \(toy\), got 'toys'", id="unknown twin"),
    pytest.param(faults(clean="ill"), r"tasks.ill.faults.clean must be a task without faults \(toy\), got 'ill'", id="ill twin"),
    pytest.param(faults(twin={**TOY, "steps": 9}), "tasks.ill must be the same as its clean twin toy but for faults, got steps 8 and 9", id="other steps"),
    pytest.param(faults(twin={**TOY, "noise": 0}), "tasks.ill must be the same as .*, got options {} and {'noise': 0}", id="other options"),
    pytest.param(faults(count=0), "tasks.ill.faults.count must be a whole number of at least 1, got 0", id="no faults"),
    pytest.param(faults(count=9), "tasks.ill.faults.count: 9 faults of 1 step do not fit into the last 8 of 8 steps: give at most 8", id="too many"),
    pytest.param(faults(kind="rate"), "tasks.ill.faults.count: 2 faults of 20 steps do not fit", id="too long"),
    pytest.param(faults(kind="rate", length=0), "tasks.ill.faults.length must be a whole number of at least 1, got 0", id="length"),
    pytest.param(faults(kind="poisoned", factor=-1), "tasks.ill.faults.factor must be a number above 0, got -1", id="factor of faults"),
    pytest.param(faults(factor=2), r"unknown key tasks.ill.faults.factor \(known: kind, clean, count\)", id="factor of nan"),
    pytest.param({"learning_rates": []}, r"learning_rates must be a list of numbers above 0, got \[\]", id="no rates"),
    pytest.param({"learning_rates": [0.1, -1]}, r"learning_rates must be .* above 0, got \[0.1, -1\]", id="rate below 0"),
    pytest.param({"learning_rates": [0.1, "1e-1"]}, "learning_rates must be different", id="same rates"),
    pytest.param({"seeds": {"tune": 0}}, "seeds.tune must be a whole number of at least 1, got 0", id="seeds"),
    pytest.param({"seeds": {"tuning": 1}}, r"unknown key seeds.tuning \(did you mean seeds.tune\?\)", id="seeds key"),
    pytest.param({"reference": "lion"}, "reference must be one of the arms adamw, navi, got 'lion'", id="reference"),
    pytest.param({"pairs": [["navi", "lion"]]}, r"pairs must be .* of adamw, navi, got \['navi', 'lion'\]", id="pair"),
    pytest.param({"pairs": [["navi", "navi"]]}, r"pairs must be .*another arm.*got \['navi', 'navi'\]", id="pair of one"),
    pytest.param({"pairs": "navi"}, "pairs must be a list of .*got 'navi'", id="pairs"),
    pytest.param({"report_rates": "some"}, "report_rates must be best or all, got 'some'", id="report_rates"),
    pytest.param(arms(x={"optim": "lion"}), "arms.x: lion is not a valid OptimizerNames", id="optim name"),
    pytest.param(arms(x={"optim": "sgd", "warm": 1}), "arms.x.warm is no argument of the Trainer", id="argument"),
    pytest.param(arms(x={"optim": "torch.optim:Nadam"}), "arms.x.optim must be module:Class.*'torch.optim:Nadam'", id="class"),
    pytest.param(arms(x={"optim": "torch.optim:SGD", "optim_args": {"mom": 1}}), "arms.x.optim_args cannot be used", id="class args"),
    pytest.param(arms(x={"optim": "emonavi", "emotion": "v3.1"}), "arms.x.emotion: emonavi has one of its own", id="own emotion"),
    pytest.param(arms(x={"optim": "sgd", "emo_law": "none"}), "arms.x.emo_law is for emonavi, .*: attach an emotion to sgd", id="no own emotion"),
    pytest.param(arms(x={"optim": "sgd", "emotion": "v4"}), "arms.x.emotion: there is no law 'v4'", id="law"),
    pytest.param({"tasks": {"toy": {**TOY, "function": "tests.study.tiny_task:made"}}}, "tasks.toy.function must name a function.*'made'", id="name of function"),
    pytest.param({"tasks": {"toy": {**TOY, "function": "nowhere.py:make"}}}, "tasks.toy.function must be a file that exists", id="file"),
    pytest.param({"tasks": {"toy": {"config": "nowhere.yaml"}}}, "tasks.toy.config: .*nowhere.yaml", id="config"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_what_is_wrong_with_a_study_is_said_by_its_key(changes: dict[str, Any], said: str) -> None:
    import emo_hf

    try:
        with pytest.raises(StudyError, match=said):
            _check(parse_study(content(**changes), "wrong"))
    finally:
        emo_hf.unregister()


@pytest.mark.parametrize("missing", ["tasks", "arms", "learning_rates", "reference"])
def test_what_a_study_cannot_do_without_is_named(missing: str) -> None:
    given = content()
    del given[missing]
    with pytest.raises(StudyError, match=f"^{missing} is missing$"):
        parse_study(given, "short")


def test_rates_are_read_as_numbers_however_yaml_takes_them() -> None:
    read = study()
    assert read.learning_rates == (1e-3, 1e-2)
    own = study(arms={**ARMS, "sens": {"optim": "emosens", "learning_rates": [1, "1e-1"]}})
    assert own.rates_of(own.arms["sens"]) == (0.1, 1.0)
    assert own.rates_of(own.arms["navi"]) == (1e-3, 1e-2)


def test_seeds_that_tune_never_report() -> None:
    seeds = study(seeds={"tune": 3, "report": 5}).seeds
    assert (len(seeds.to_tune), len(seeds.to_report)) == (3, 5)
    assert not set(seeds.to_tune) & set(seeds.to_report)


def test_emo_law_is_an_argument_of_the_optimizer_and_text_is_read_as_the_trainer_does() -> None:
    read = study(
        arms={**ARMS, "x": {"optim": "emonavi", "emo_law": "none", "optim_args": "use_shadow=true,beta2=0.9"}}
    )
    assert read.arms["x"].optim_args == {"use_shadow": "true", "beta2": "0.9", "emo_law": "none"}


def test_an_arm_that_follows_another_needs_a_second_seed_to_replay() -> None:
    follows = {**ARMS, "x": {"optim": "emonavi", "emo_law": "replay:navi"}}
    with pytest.raises(
        StudyError, match=r"arms\.x: 'replay:navi' replays another seed: seeds.report must be at least 2"
    ):
        study(arms=follows, seeds={"report": 1})
    read = study(arms=follows)
    assert read.source_of(read.arms["x"]) == "navi"


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_that_come_with_the_package_can_be_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import emo_hf

    monkeypatch.chdir(ROOT)
    try:
        _check(read_study(file))
    finally:
        emo_hf.unregister()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nowhere\.yaml: there is no such file"):
        read_study(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(StudyError, match=r"broken\.yaml: cannot be read"):
        read_study(tmp_path / "broken.yaml")
