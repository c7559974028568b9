"""One run: what is paired, what is recorded, and what an ablation does to a real Trainer's optimizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from emo_hf.study.errors import StudyError
from emo_hf.study.outcome import spread, thinned
from emo_hf.study.plan import Run, report_runs, tune_runs
from emo_hf.study.run_one import perform
from emo_hf.study.specification import Study
from tests.study.studies import ARMS, study
from tests.train.tiny import save_bert, topics_csv

NOWHERE = Path("nowhere.jsonl")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    import emo_hf

    yield
    emo_hf.unregister()


def run_of(small: Study, arm: str, seed: int = 1) -> Run:
    import dataclasses

    found = [run for run in tune_runs(small) if run.arm.name == arm][-1]
    return dataclasses.replace(found, seed=seed)


def factors(line: Mapping[str, Any]) -> list[float]:
    found: list[float] = line["emotion"]["factors"]
    return found


EVERY_KIND = {
    **ARMS,
    "greedy": {"optim": "adamw_torch", "lr_scheduler_type": "greedy"},
    "own class": {"optim": "torch.optim:NAdam", "emotion": "v3.1"},
    "own emo class": {"optim": "emo_hf:EmoLynx", "emo_law": "none"},
    "sens": {"optim": "emosens"},
}


def test_every_kind_of_arm_has_the_same_first_weights_and_the_same_data_in_the_same_order() -> None:
    kinds = {name.replace(" ", "-"): arm for name, arm in EVERY_KIND.items()}
    small = study(arms=kinds)
    lines = [perform(run_of(small, arm), NOWHERE) for arm in kinds]
    prints = [line["fingerprint"] for line in lines]
    assert all(found == prints[0] for found in prints)
    assert len(prints[0]["batches"]) == 8
    assert len(set(prints[0]["batches"])) > 4  # they are not all one
    assert {line["start"] for line in lines} == {lines[0]["start"]}
    assert len({line["end"] for line in lines}) == len(lines)
    assert {line["planned_steps"] for line in lines} == {8}
    other = perform(run_of(small, "adamw", seed=2), NOWHERE)
    assert other["fingerprint"]["weights"] != prints[0]["weights"]
    assert other["fingerprint"]["first_batch"] != prints[0]["first_batch"]


def test_a_run_comes_out_the_same_when_it_is_run_again() -> None:
    small = study()
    first, again = (perform(run_of(small, "navi"), NOWHERE) for _ in range(2))
    for key in ("curve", "end", "best", "metrics", "emotion", "fingerprint"):
        assert first[key] == again[key], key


def test_a_line_holds_what_the_report_needs_as_plain_json() -> None:
    found = perform(run_of(study(), "navi"), NOWHERE)
    line = json.loads(json.dumps(found, allow_nan=False))
    assert line == found
    assert [step for step, _ in line["curve"]["evaluations"]] == [0, 2, 4, 6, 8]
    assert [step for step, _ in line["curve"]["train"]] == list(range(1, 9))
    assert line["end"] == line["curve"]["evaluations"][-1][1]
    assert line["best"] == min(loss for _, loss in line["curve"]["evaluations"])
    assert line["metrics"]["examples"] == 32.0
    assert len(factors(line)) == 8
    assert line["emotion"]["law"] == "v3.1"
    assert line["optimizer_state_bytes"] == 2 * 4 * line["trainable_parameters"]
    assert line["stops"] == {"raw": None, "believed": None, "ended": None}
    assert line["versions"].keys() >= {"python", "emo_hf", "torch", "transformers"}


def test_a_curve_is_thinned_by_means_and_a_loss_that_is_not_finite_is_no_number() -> None:
    assert thinned([1.0, 3.0, 5.0], 2) == [[2, 2.0], [3, 5.0]]
    assert thinned([float("nan"), 1.0], 9) == [[1, None], [2, 1.0]]
    assert spread([0.0, 2.0])["sd"] == 1.0


def test_a_rate_that_is_far_too_high_diverges_and_is_recorded_as_such() -> None:
    small = study(arms={"sgd": {"optim": "sgd", "max_grad_norm": 0}}, learning_rates=[1e8], reference="sgd")
    line = perform(run_of(small, "sgd"), NOWHERE)
    assert line["diverged"]
    assert line["end"] is None
    json.dumps(line, allow_nan=False)


def test_the_greedy_schedule_hears_the_training_loss_of_every_step() -> None:
    impatient = {"patience": 0, "factor": 0.5, "threshold": 0.9}  # hardly any step is good enough
    arms = {
        "adamw": {"optim": "adamw_torch", "lr_scheduler_type": "constant"},
        "greedy": {"optim": "adamw_torch", "lr_scheduler_type": "greedy"},
        "impatient": {"optim": "adamw_torch", "lr_scheduler_type": "greedy", "lr_scheduler_kwargs": impatient},
    }
    small = study(arms=arms, evaluations=1)
    constant, patient, falling = (perform(run_of(small, arm), NOWHERE) for arm in arms)
    assert patient["curve"] == constant["curve"]  # its patience is longer than the run
    assert falling["end"] > constant["end"]


def test_no_emotion_at_a_constant_factor_is_the_same_run_as_that_rate() -> None:
    arms = {
        **ARMS,
        "none": {"optim": "emonavi", "emo_law": "none", "lr_scheduler_type": "constant", "weight_decay": 0},
    }
    arms["twice"] = {**arms["none"], "emo_law": "constant:2.0"}
    small = study(arms=arms, learning_rates=[1e-3, 2e-3])
    doubled = perform(run_of(small, "none"), NOWHERE)
    slow = [run for run in tune_runs(small) if run.arm.name == "twice" and run.rate == 1e-3]
    twice = perform(slow[0], NOWHERE)
    assert set(factors(twice)) == {2.0}
    assert set(factors(doubled)) == {1.0}
    assert twice["curve"] == doubled["curve"]


def test_followers_take_the_mean_and_the_factors_of_the_run_that_they_follow(tmp_path: Path) -> None:
    arms = {
        **ARMS,
        "mean": {"optim": "emonavi", "emo_law": "constant:navi", "lr_scheduler_type": "constant"},
        "replay": {"optim": "emonavi", "emo_law": "replay:navi", "lr_scheduler_type": "constant"},
        "on-adamw": {"optim": "adamw_torch", "emotion": "replay:navi", "lr_scheduler_type": "constant"},
    }
    small, best = study(arms=arms, seeds={"tune": 1, "report": 2}), {("toy", "navi"): 1e-2}
    file = tmp_path / "runs.jsonl"
    sources = [perform(run, file) for run in report_runs(small, best, following=False)]
    file.write_text("".join(json.dumps(line) + "\n" for line in sources))
    lines = {line["id"]: line for line in (perform(run, file) for run in report_runs(small, best, following=True))}
    own, other = (factors(line) for line in sources)
    assert own != other
    assert factors(lines["toy/replay/0.01/seed1001"]) == other
    assert factors(lines["toy/on-adamw/0.01/seed1002"]) == own
    mean = sources[0]["emotion"]["coefficient"]["mean"]
    assert factors(lines["toy/mean/0.01/seed1001"]) == pytest.approx([mean] * 8, rel=1e-5)
    replayed = lines["toy/replay/0.01/seed1001"]["emotion"]
    assert replayed["law"] == f"replay:{file}#toy/navi/0.01/seed1002"


@pytest.mark.parametrize(
    ("function", "said"), [("no_task", "must return a Task, got int"), ("no_loss", "with 'loss'")]
)
def test_a_function_that_gives_no_task_is_refused(function: str, said: str) -> None:
    small = study(tasks={"toy": {"function": f"tests.study.tiny_task:{function}", "steps": 2}})
    with pytest.raises((StudyError, ValueError), match=said):
        perform(run_of(small, "adamw"), NOWHERE)


def test_keys_of_a_task_are_keywords_of_its_function() -> None:
    wide = study(tasks={"toy": {"function": "tests/study/tiny_task.py:make", "steps": 2, "width": 8}})
    assert perform(run_of(wide, "adamw"), NOWHERE)["trainable_parameters"] == 8 * 3 + 8 + 8 + 1


def test_a_job_of_emo_hf_train_is_a_task_with_options_over_its_file(tmp_path: Path) -> None:
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
    small = study(tasks={"topics": {"config": str(config), "max_steps": 6, "lora_r": 2}}, evaluations=2)
    adamw, navi = (perform(run_of(small, arm), NOWHERE) for arm in ("adamw", "navi"))
    assert adamw["fingerprint"] == navi["fingerprint"]
    assert adamw["start"] == navi["start"]
    assert [step for step, _ in navi["curve"]["evaluations"]] == [0, 3, 6]
    assert "accuracy" in navi["metrics"]
    assert not (tmp_path / "never").exists()
    rate = study(tasks={"topics": {"config": str(config)}}, evaluations=3)  # as long as the job says
    assert perform(run_of(rate, "navi"), NOWHERE)["planned_steps"] == 11
