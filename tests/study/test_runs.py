"""One run: what is paired, what is measured, and that both halves and the average are judged along one trajectory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from emo_hf.cli_errors import UserError
from emo_hf.study.main import check_arms
from emo_hf.study.measure import thinned
from emo_hf.study.plan import Plan, Run
from emo_hf.study.run_one import perform
from emo_hf.study.schema import Study
from tests.study.studies import ARMS, FUNCTION, study
from tests.train.tiny import save_bert, topics_csv


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    import emo_hf

    yield
    emo_hf.unregister()


def run_of(small: Study, arm: str, seed: int = 1, rate: float = 1e-2) -> Run:
    first = Plan(small, {}).first_run(next(iter(small.tasks.values())), small.arms[arm])
    return dataclasses.replace(first, seed=seed, rate=rate)


def ends(line: Mapping[str, Any], what: str = "weights") -> list[float]:
    return [line["curves"][what][half][-1][1] for half in ("tune", "judge")]


CONSTANT = {"optim": "adamw_torch", "lr_scheduler_type": "constant"}
EVERY_KIND = {
    **ARMS,
    "own-class": {"optim": "torch.optim:NAdam", "emotion": "v3.1"},
    "own-emo-class": {"optim": "emo_hf:EmoLynx", "emo_law": "none"},
    "sens": {"optim": "emosens"},
    "wsd": {
        "optim": "adamw_torch",
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 0.25},
    },
    "average": {**CONSTANT, "average": True},
}


def test_every_kind_of_arm_has_the_same_first_weights_and_the_same_data_in_the_same_order() -> None:
    small = study(arms=EVERY_KIND)
    lines = [perform(run_of(small, arm)) for arm in EVERY_KIND]
    prints = [line["fingerprint"] for line in lines]
    assert all(found == prints[0] for found in prints)
    assert len(set(prints[0]["batches"])) > 4  # they are not all one
    starts = [line["curves"]["weights"]["judge"][0] for line in lines]
    assert all(start == starts[0] for start in starts)
    assert len({ends(line)[1] for line in lines}) == len(lines)
    other = perform(run_of(small, "adamw", seed=2))
    assert other["fingerprint"]["weights"] != prints[0]["weights"]
    assert other["fingerprint"]["batches"][0] != prints[0]["batches"][0]


def test_an_average_leaves_the_trajectory_as_it_is_and_is_judged_beside_it() -> None:
    arms = {
        "plain": CONSTANT,
        "both": {**CONSTANT, "average": True},
        "navi": {"optim": "emonavi", "lr_scheduler_type": "constant"},
        "navi-both": {"optim": "emonavi", "lr_scheduler_type": "constant", "average": True},
        "settle": {**CONSTANT, "emotion": "settle", "average": "only"},
    }
    small = study(arms=arms, reference="plain")
    lines = {arm: perform(run_of(small, arm)) for arm in arms}
    for without, with_both in (("plain", "both"), ("navi", "navi-both")):
        assert lines[without]["curves"].keys() == {"weights"}
        assert lines[without]["curves"]["weights"] == lines[with_both]["curves"]["weights"]
        assert lines[without]["losses"] == lines[with_both]["losses"]
        average = lines[with_both]["curves"]["average"]["judge"]
        assert average[0] == lines[with_both]["curves"]["weights"]["judge"][0]
        assert average[-1] != lines[with_both]["curves"]["weights"]["judge"][-1]
    assert "average" in lines["settle"]["curves"]


def test_a_law_hears_the_tuning_half_and_of_an_average_that(monkeypatch: pytest.MonkeyPatch) -> None:
    from emo_hf.laws.settle import Settle

    heard = []
    hear = Settle.hear_evaluation
    monkeypatch.setattr(Settle, "hear_evaluation", lambda law, loss: heard.append(loss) or hear(law, loss))
    line = perform(run_of(study(arms={**ARMS, "law": {**CONSTANT, "emotion": "settle"}}), "law"))
    tune = [loss for _, loss in line["curves"]["average"]["tune"]]
    assert heard[-4:] == pytest.approx(tune[-4:], rel=1e-5)
    assert heard[-1] != pytest.approx(ends(line)[0], rel=1e-5)


def test_a_run_comes_out_the_same_when_it_is_run_again() -> None:
    small = study()
    first, again = (perform(run_of(small, "navi")) for _ in range(2))
    for key in ("curves", "metrics", "losses", "decisions", "factor", "fingerprint"):
        assert first[key] == again[key], key


def test_a_line_holds_what_the_report_needs_as_plain_json() -> None:
    found = perform(run_of(study(), "navi"))
    line = json.loads(json.dumps(found, allow_nan=False))
    assert line == found
    for half in ("tune", "judge"):
        assert [step for step, _ in line["curves"]["weights"][half]] == [0, 2, 4, 6, 8]
        assert line["metrics"]["weights"][half]["examples"] == 16.0
    assert ends(line)[0] != ends(line)[1]
    assert [step for step, _ in line["losses"]] == list(range(1, 9))
    assert line["factor"].keys() == {"mean", "min", "max"}
    assert line["versions"].keys() >= {"python", "emo_hf", "torch", "transformers"}


def test_decisions_are_kept_as_data() -> None:
    arms = {**ARMS, "law": {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0, "emotion": "settle"}}
    tasks = {"toy": {"function": FUNCTION, "steps": 40}}
    line = perform(run_of(study(arms=arms, tasks=tasks), "law", rate=1e6))
    assert line["decisions"]
    assert all(note.keys() == {"step", "kind", "factor", "reason"} for note in line["decisions"])
    assert json.dumps(line, allow_nan=False)


def test_a_rate_that_is_far_too_high_ends_in_no_number() -> None:
    small = study(arms={"sgd": {"optim": "sgd", "max_grad_norm": 0}}, reference="sgd")
    line = perform(run_of(small, "sgd", rate=1e8))
    assert ends(line) == [None, None]
    json.dumps(line, allow_nan=False)


def test_an_arm_that_stops_itself_is_judged_where_it_ended() -> None:
    law = {**CONSTANT, "emotion": "settle", "emotion_args": {"evaluation_patience": 1}, "self_stop": "stop"}
    tasks = {"toy": {"function": FUNCTION, "steps": 200}}
    line = perform(run_of(study(arms={**ARMS, "law": law}, tasks=tasks, evaluations=50), "law", rate=1.0))
    assert line["steps"] < line["planned_steps"] == 200
    assert line["curves"]["weights"]["judge"][-1][0] == line["steps"]


def test_a_curve_is_thinned_by_means_and_a_loss_that_is_not_finite_is_no_number() -> None:
    assert thinned([1.0, 3.0, 5.0], 2) == [[2, 2.0], [3, 5.0]]
    assert thinned([float("nan"), 1.0], 9) == [[1, None], [2, 1.0]]


def test_keys_of_a_task_are_keywords_of_its_function_and_training_goes_to_the_trainer() -> None:
    task = {"function": "tests/study/tiny_task.py:make", "steps": 2, "width": 8, "training": {"weight_decay": 9.0}}
    wide = study(tasks={"toy": task})
    line = perform(run_of(wide, "adamw"))
    assert line["trainable_parameters"] == 8 * 3 + 8 + 8 + 1
    plain = {key: value for key, value in task.items() if key != "training"}
    assert perform(run_of(study(tasks={"toy": plain}), "adamw"))["curves"] != line["curves"]


@pytest.mark.parametrize(
    ("function", "said"), [("no_task", "must return a Task, got int"), ("no_loss", "with 'loss'")]
)
def test_a_function_that_gives_no_task_is_refused(function: str, said: str) -> None:
    small = study(tasks={"toy": {"function": f"tests.study.tiny_task:{function}", "steps": 2}})
    with pytest.raises(UserError, match=said):
        perform(run_of(small, "adamw"))


def test_a_job_of_emo_hf_train_is_a_task_whose_held_out_data_are_cut_in_two(tmp_path: Path) -> None:
    job = {
        "model_name_or_path": save_bert(tmp_path / "bert"),
        "train_file": topics_csv(tmp_path),
        "optim": "emonavi",
        "optim_args": {"head_lr_ratio": 10},  # of the job's own optimizer: no arm has it
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "max_length": 16,
        "use_cpu": True,
        "output_dir": str(tmp_path / "never"),
    }
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(job))
    arms = {**ARMS, "average": {**CONSTANT, "average": True}, "plain": CONSTANT}
    tasks = {"topics": {"config": str(config), "max_steps": 6, "lora_r": 2}}
    small = study(tasks=tasks, arms=arms, evaluations=2)
    adamw, navi, average, plain = (perform(run_of(small, arm)) for arm in ("adamw", "navi", "average", "plain"))
    assert adamw["fingerprint"] == navi["fingerprint"] == average["fingerprint"]
    assert [step for step, _ in navi["curves"]["weights"]["judge"]] == [0, 3, 6]
    assert ends(navi)[0] != ends(navi)[1]
    assert "accuracy" in navi["metrics"]["weights"]["judge"]
    assert average["curves"]["weights"] == plain["curves"]["weights"]
    assert ends(average, "average") != ends(average)
    assert not (tmp_path / "never").exists()
    rate = study(tasks={"topics": {"config": str(config)}}, evaluations=3)  # as long as the job says
    assert perform(run_of(rate, "navi"))["planned_steps"] == 11


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"optim": "nothing"}, r"arms\.bad: .*nothing"),
        ({"optim": "torch.optim:Nothing"}, r"arms\.bad\.optim must name a function or a class, got 'Nothing'"),
        (
            {"optim": "no_module:Nothing"},
            r"arms\.bad\.optim must be in a module that can be imported, got 'no_module'",
        ),
        ({"optim": "torch.optim:NAdam", "optim_args": {"colour": 1}}, r"arms\.bad: .*colour"),
        ({"optim": "emonavi", "optim_args": {"colour": 1}}, r"arms\.bad: .*colour"),
        ({"optim": "adamw_torch", "emo_law": "v3.1"}, r"arms\.bad\.emo_law is for .*emonavi"),
        ({"optim": "emonavi", "emotion": "v3.1"}, r"arms\.bad\.emotion: emonavi has one of its own"),
        ({"optim": "adamw_torch", "emotion": "v9"}, r"arms\.bad\.emotion: .*v9"),
        ({"optim": "adamw_torch", "emotion": "settle", "emotion_args": {"ease": True}}, r"arms\.bad\.emotion: .*ease"),
        ({"optim": "adamw_torch", "colour": 1}, r"arms\.bad\.colour is no argument of the Trainer"),
        ({"optim": "adamw_torch", "lr_scheduler_type": "zigzag"}, r"arms\.bad: .*zigzag"),
        ({"optim": "adamw_torch", "callback": "none.py:Mine"}, r"arms\.bad\.callback must be in a file that exists"),
    ],
)
def test_what_is_wrong_with_an_arm_is_said_before_the_first_run(arm: dict[str, Any], said: str) -> None:
    small = study(arms={**ARMS, "bad": arm})
    with pytest.raises(UserError, match=said):
        check_arms(small, Plan(small, {}))


def test_what_is_wrong_with_a_task_is_said_before_the_first_run(tmp_path: Path) -> None:
    for task, said in (
        ({"function": "tests.study.tiny_task:nothing", "steps": 2}, r"tasks\.toy\.function must name a function"),
        ({"config": str(tmp_path / "none.yaml")}, r"tasks\.toy\.config: .*No such file"),
    ):
        small = study(tasks={"toy": task})
        with pytest.raises(UserError, match=said):
            check_arms(small, Plan(small, {}))
