"""One run: what is paired, what is measured, and that both halves and the average are judged along one trajectory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Trainer

from emo_hf.cli_errors import UserError
from emo_hf.laws.settle import Settle
from emo_hf.study.main import check_arms
from emo_hf.study.plan import Plan, Run
from emo_hf.study.run_one import perform, thinned
from emo_hf.study.schema import Study
from tests.study.studies import ARMS, CONSTANT, FUNCTION, TASK, study
from tests.train.tiny import save_bert, topics_csv


def run_of(small: Study, arm: str, seed: int = 1, rate: float = 1e-2) -> Run:
    first = Plan(small, {}).first_run(next(iter(small.tasks.values())), small.arms[arm])
    return dataclasses.replace(first, seed=seed, rate=rate)


def ends(line: Mapping[str, Any], what: str = "weights") -> list[float]:
    return [line["curves"][what][half][-1][1] for half in ("tune", "judge")]


WSD = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 0.25}}
EVERY_KIND = {
    **ARMS,
    "own-class": {
        "optim": "torch.optim:NAdam",
        "emotion": "v3.1",
        "optim_args": {"eps": "1e-6", "betas": [0.9, 0.99]},
    },
    "own-emo-class": {"optim": "emo_hf:EmoLynx", "emo_law": "none"},
    "sens": {"optim": "emosens"},
    "wsd": {"optim": "adamw_torch", **WSD},
    "plain": CONSTANT,
    "plain-both": {**CONSTANT, "average": True},
    "navi-both": {**ARMS["navi"], "average": True},
    "settle": {**CONSTANT, "emotion": "settle", "average": "only"},
}


def test_every_kind_of_arm_is_paired_and_an_average_leaves_the_trajectory_as_it_is() -> None:
    small = study(arms=EVERY_KIND)
    lines = {arm: perform(run_of(small, arm)) for arm in EVERY_KIND}
    first, *others = lines.values()
    for line in others:
        assert line["fingerprint"] == first["fingerprint"]
        assert line["curves"]["weights"]["judge"][0] == first["curves"]["weights"]["judge"][0]
    assert len(set(first["fingerprint"]["batches"])) > 4, "a second pass has another order"
    alike = {"plain-both", "navi-both", "settle"}
    assert len({ends(line)[1] for arm, line in lines.items() if arm not in alike}) == len(lines) - len(alike)
    for without, with_both in (("plain", "plain-both"), ("navi", "navi-both")):
        assert lines[without]["curves"].keys() == {"weights"}
        for part in ("weights", "losses"):
            one, other = ({**lines[arm], **lines[arm]["curves"]}[part] for arm in (without, with_both))
            assert one == other
        average, weights = (lines[with_both]["curves"][what]["judge"] for what in ("average", "weights"))
        assert average[0] == weights[0]
        assert average[-1] != weights[-1]
    assert lines["settle"]["curves"].keys() == {"weights", "average"}
    other = perform(run_of(small, "adamw", seed=2))["fingerprint"]
    assert other["weights"] != first["fingerprint"]["weights"]
    assert other["batches"][0] != first["fingerprint"]["batches"][0]


class LooksIntoGroups(torch.optim.SGD):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        assert [group["params"][0] for group in self.param_groups]


def test_an_optimizer_that_looks_into_its_groups_gets_none_that_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "get_decay_parameter_names", lambda *_: [])
    arms = {**ARMS, "picky": {**CONSTANT, "optim": f"{__name__}:LooksIntoGroups"}}
    assert None not in ends(perform(run_of(study(arms=arms), "picky")))


def test_a_law_hears_the_tuning_half_and_of_an_average_that(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, hear = [], Settle.hear_evaluation
    monkeypatch.setattr(Settle, "hear_evaluation", lambda law, loss: heard.append(loss) or hear(law, loss))
    line = perform(run_of(study(arms={**ARMS, "law": {**CONSTANT, "emotion": "settle"}}), "law"))
    tune = [loss for _, loss in line["curves"]["average"]["tune"]]
    assert heard[-4:] == pytest.approx(tune[-4:], rel=1e-5)
    assert heard[-1] != pytest.approx(ends(line)[0], rel=1e-5)


def test_a_line_holds_what_the_report_needs_as_plain_json_and_comes_out_the_same_again() -> None:
    found, again = (perform(run_of(study(), "navi")) for _ in range(2))
    changing = {"seconds", "setup_seconds", "evaluation_seconds", "finished"}
    assert {key for key in found if found[key] != again[key]} <= changing
    line = json.loads(json.dumps(found, allow_nan=False))
    assert line == found
    assert line.keys() == {
        *changing, "key", "task", "arm", "rate", "seed", "phase", "config", "steps", "planned_steps", "losses",
        "curves", "metrics", "decisions", "factor", "skipped", "fingerprint", "chance", "extra", "device", "threads",
        "trainable_parameters", "versions",
    }  # fmt: skip
    for half in ("tune", "judge"):
        assert [step for step, _ in line["curves"]["weights"][half]] == [0, 2, 4, 6, 8]
        assert line["metrics"]["weights"][half]["examples"] == 16.0
    assert ends(line)[0] != ends(line)[1]
    assert [step for step, _ in line["losses"]] == list(range(1, 9))
    assert line["factor"].keys() == {"mean", "min", "max"}
    assert line["versions"].keys() >= {"python", "emo_hf", "torch", "transformers"}
    assert thinned([1.0, 3.0, 5.0], 2) == [[2, 2.0], [3, 5.0]]
    assert thinned([float("nan"), 1.0], 9) == [[1, None], [2, 1.0]]


def test_a_rate_that_is_far_too_high_ends_in_no_number_or_in_decisions_which_are_data() -> None:
    sgd = {"optim": "sgd", "max_grad_norm": 0, "lr_scheduler_type": "constant"}
    arms = {"sgd": sgd, "law": {**sgd, "emotion": "settle"}}
    small = study(arms=arms, reference="sgd", tasks={"toy": {**TASK, "steps": 40}})
    lost, guarded = (perform(run_of(small, arm, rate=1e6)) for arm in ("sgd", "law"))
    assert ends(lost) == [None, None]
    skipped = [note["step"] for note in guarded["decisions"] if note["kind"] == "skipped"]
    assert len(skipped) == len(set(skipped)) > 3, "each of them once"
    assert all(note.keys() == {"step", "kind", "factor", "reason"} for note in guarded["decisions"])
    json.dumps([lost, guarded], allow_nan=False)


def test_an_arm_that_stops_itself_is_judged_where_it_ended() -> None:
    law = {**CONSTANT, "emotion": "settle", "emotion_args": {"evaluation_patience": 1}, "self_stop": "stop"}
    small = study(arms={**ARMS, "law": law}, tasks={"toy": {**TASK, "steps": 200}}, evaluations=30)
    line = perform(run_of(small, "law", rate=1.0))
    assert line["steps"] < line["planned_steps"] == 200
    assert line["curves"]["weights"]["judge"][-1][0] == line["steps"]
    assert line["decisions"][-1]["kind"] == "done", "decided by the evaluation, after the last step"


def test_keys_of_a_task_are_keywords_of_its_function_and_training_goes_to_the_trainer() -> None:
    plain = {"function": "tests/study/tiny_task.py:make", "steps": 2, "width": 8}
    decayed = {**plain, "training": {"weight_decay": 9.0}}
    one, other = (perform(run_of(study(tasks={"toy": task}), "adamw")) for task in (plain, decayed))
    assert one["trainable_parameters"] == 8 * 3 + 8 + 8 + 1
    assert one["curves"] != other["curves"]


def test_a_job_of_emo_hf_train_is_a_task_whose_held_out_data_are_cut_in_two(tmp_path: Path) -> None:
    job = {
        "model_name_or_path": save_bert(tmp_path / "bert"), "train_file": topics_csv(tmp_path), "optim": "emonavi",
        "optim_args": {"head_lr_ratio": 10},  # the job's own optimizer and law: no arm has them
        "emotion": "settle", "emotion_args": {"average_weights": True}, "evaluate_weights_too": True,
        "head_lr_ratio": 2,  # of the task: all arms have it
        "num_train_epochs": 1, "per_device_train_batch_size": 4, "max_length": 16, "use_cpu": True,
        "output_dir": str(tmp_path / "never"),
    }  # fmt: skip
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(job))
    arms = {"navi": ARMS["navi"], "average": {**CONSTANT, "average": True}, "plain": CONSTANT}
    tasks = {"topics": {"config": str(config), "max_steps": 6, "lora_r": 2}}
    small = study(tasks=tasks, arms=arms, evaluations=2, reference="plain")
    navi, average, plain = (perform(run_of(small, arm)) for arm in arms)
    assert navi["fingerprint"] == average["fingerprint"] == plain["fingerprint"]
    assert [step for step, _ in navi["curves"]["weights"]["judge"]] == [0, 3, 6]
    assert ends(navi)[0] != ends(navi)[1]
    assert "accuracy" in navi["metrics"]["weights"]["judge"]
    assert average["curves"]["weights"] == plain["curves"]["weights"]
    assert ends(average, "average") != ends(average)
    assert (plain["curves"].keys(), plain["decisions"]) == ({"weights"}, [])
    assert not (tmp_path / "never").exists()
    as_long_as_it_says = study(tasks={"topics": {"config": str(config)}}, evaluations=3)
    assert perform(run_of(as_long_as_it_says, "navi"))["planned_steps"] == 11


def bad(optim: str, **arm: Any) -> dict[str, Any]:
    return {"arms": {"bad": {"optim": optim, **arm}}, "reference": "bad"}


def toy(**task: Any) -> dict[str, Any]:
    return {"tasks": {"toy": task}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (bad("nothing"), r"arms\.bad: .*nothing"),
        (bad("torch.optim:Nothing"), r"^arms\.bad\.optim must name a function or a class, got 'Nothing'"),
        (bad("no_module:Nothing"), r"arms\.bad\.optim must be in a module that can be imported, got 'no_mod"),
        (bad("torch.optim:NAdam", optim_args={"colour": 1}), r"arms\.bad: .*colour"),
        (bad("emonavi", optim_args={"colour": 1}), r"arms\.bad: .*colour"),
        (bad("adamw_torch", emo_law="v3.1"), r"arms\.bad\.emo_law is for .*emonavi"),
        (bad("emonavi", emotion="v3.1"), r"arms\.bad\.emotion: emonavi has one of its own"),
        (bad("adamw_torch", emotion="v9"), r"arms\.bad\.emotion: .*v9"),
        (bad("adamw_torch", emotion="settle", emotion_args={"ease": True}), r"arms\.bad\.emotion: .*ease"),
        (bad("adamw_torch", colour=1), r"arms\.bad\.colour is no argument of the Trainer"),
        (bad("adamw_torch", lr_scheduler_type="zigzag"), r"arms\.bad: .*zigzag"),
        (bad("adamw_torch", callback="none.py:Mine"), r"arms\.bad\.callback must be in a file that exists"),
        (toy(function=f"{FUNCTION}_nothing", steps=8), r"tasks\.toy\.function must name a function"),
        (toy(config="none.yaml"), r"tasks\.toy\.config: 'none\.yaml' there is no such file"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_run(changes: dict[str, Any], said: str) -> None:
    small = study(**changes)
    with pytest.raises(UserError, match=said):
        check_arms(small, Plan(small, {}))


def test_what_a_function_returns_must_be_a_task() -> None:
    small = study(**toy(function=FUNCTION.replace("make", "no_task"), steps=8))
    with pytest.raises(UserError, match="must return a Task, got int"):
        perform(run_of(small, "adamw"))
