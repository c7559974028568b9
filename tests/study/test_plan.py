"""Which runs a study has, when a run is done, and what is kept through a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emo_hf.study.errors import StudyError
from emo_hf.study.estimate import probe_runs
from emo_hf.study.plan import best_rates, matching, planned_counts, report_runs, tune_runs
from emo_hf.study.results import OneAtATime, Results
from emo_hf.study.specification import Study
from tests.study.studies import ARMS, FUNCTION, line, study

FOLLOWERS = {
    **ARMS,
    "mean": {"optim": "emonavi", "emo_law": "constant:navi"},
    "replay": {"optim": "emonavi", "emo_law": "replay:navi"},
}


def test_every_rate_is_tuned_for_every_arm_that_has_rates_of_its_own() -> None:
    runs = tune_runs(study(arms=FOLLOWERS))
    assert [run.id for run in runs] == [
        "toy/adamw/0.001/seed1", "toy/adamw/0.01/seed1", "toy/navi/0.001/seed1", "toy/navi/0.01/seed1",
    ]  # fmt: skip


def test_the_rate_with_the_lowest_mean_loss_is_taken_and_one_that_diverges_is_not() -> None:
    small = study(seeds={"tune": 2, "report": 2})
    ends = {"adamw": {1e-3: [1.0, 1.2], 1e-2: [0.5, None]}, "navi": {1e-3: [1.0, 1.0], 1e-2: [0.9, 0.9]}}
    lines = {run.id: line(run, ends[run.arm.name][run.rate][run.seed - 1]) for run in tune_runs(small)}
    assert best_rates(small, lines) == {("toy", "adamw"): 1e-3, ("toy", "navi"): 1e-2}
    del lines["toy/navi/0.01/seed2"]
    assert ("toy", "navi") not in best_rates(small, lines)  # not tuned to its end


def test_fresh_seeds_are_run_at_the_tuned_rate_and_all_arms_have_the_same() -> None:
    small = study()
    runs = report_runs(small, {("toy", "adamw"): 1e-3, ("toy", "navi"): 1e-2}, following=False)
    assert {(run.arm.name, run.rate) for run in runs} == {("adamw", 1e-3), ("navi", 1e-2)}
    seeds = {arm: [run.seed for run in runs if run.arm.name == arm] for arm in small.arms}
    assert seeds["adamw"] == seeds["navi"] == small.seeds.to_report


def test_followers_run_at_the_rate_of_their_source_one_with_its_own_seed_and_one_with_the_next() -> None:
    small = study(arms=FOLLOWERS)
    runs = report_runs(small, {("toy", "navi"): 1e-2}, following=True)
    assert [(run.arm.name, run.seed, run.source) for run in runs] == [
        ("mean", 1001, "toy/navi/0.01/seed1001"),
        ("mean", 1002, "toy/navi/0.01/seed1002"),
        ("mean", 1003, "toy/navi/0.01/seed1003"),
        ("replay", 1001, "toy/navi/0.01/seed1002"),
        ("replay", 1002, "toy/navi/0.01/seed1003"),
        ("replay", 1003, "toy/navi/0.01/seed1001"),
    ]


def test_a_run_without_faults_and_guards_says_of_itself_what_it_always_did() -> None:
    run = tune_runs(study())[0]
    assert run.id == "toy/adamw/0.001/seed1"
    assert run.config() == {
        "task": {"name": "toy", "config": None, "function": FUNCTION, "steps": 8, "options": {}},
        "arm": {
            "name": "adamw", "optim": "adamw_torch", "optim_args": {}, "emotion": None, "emotion_args": {},
            "self_stop": "off", "lr_scheduler_type": "linear", "learning_rates": None, "options": {},
        },
        "rate": 0.001, "seed": 1, "steps": 8, "evaluations": 4, "source": None,
    }  # fmt: skip


def faulty(**changes: Any) -> Study:
    """A study with a task and its twin, every second step of which is poisoned."""
    toy = {"function": FUNCTION, "steps": 40}
    tasks = {"toy": toy, "ill": {**toy, "faults": {"kind": "poisoned", "clean": "toy", "count": 18}}}
    return study(tasks=tasks, arms=FOLLOWERS, **changes)


def test_a_run_with_faults_or_a_guard_says_so() -> None:
    small = study(arms={**ARMS, "skip": {"optim": "adamw_torch", "guard": "skip"}})
    assert tune_runs(small)[-1].config()["arm"]["guard"] == "skip"
    run = report_runs(faulty(), {("toy", "adamw"): 1e-2}, following=False)[-1]
    assert run.config()["task"]["faults"] == {
        "kind": "poisoned", "clean": "toy", "count": 18, "factor": 50.0, "length": 1,
    }  # fmt: skip


@pytest.mark.parametrize("report_rates", ["best", "all"])
def test_a_task_with_faults_is_not_tuned_and_runs_at_the_rates_of_its_clean_twin(report_rates: str) -> None:
    small = faulty(report_rates=report_rates)
    assert {run.task.name for run in tune_runs(small)} == {"toy"}
    lines = {run.id: line(run, 1.0 if run.rate == 1e-3 else 0.5) for run in tune_runs(small)}
    best = best_rates(small, lines)
    assert best == {("toy", "adamw"): 1e-2, ("toy", "navi"): 1e-2}
    ill = [run for run in report_runs(small, best, following=False) if run.task.name == "ill"]
    assert {run.rate for run in ill} == ({1e-2} if report_rates == "best" else {1e-2, 1e-3})
    followers = [run for run in report_runs(small, best, following=True) if run.task.name == "ill"]
    assert followers[0].source == f"ill/navi/{followers[0].rate:g}/seed1001"  # the factors that it had with faults
    assert len(report_runs(small, {("ill", "adamw"): 1e-2}, following=False)) == 0


def test_the_time_of_a_task_with_faults_is_found_out_without_them() -> None:
    (probe,) = probe_runs(faulty(), ["ill"])
    assert (probe.task.name, probe.task.faults, probe.arm.name) == ("ill", None, "adamw")


def test_runs_are_counted_before_anything_is_known() -> None:
    assert planned_counts(study(arms=FOLLOWERS)) == {"tune": 4, "report": 12}
    assert planned_counts(study(report_rates="all")) == {"tune": 4, "report": 12}


def test_only_takes_the_runs_whose_id_holds_a_text() -> None:
    runs = tune_runs(study())
    assert [run.id for run in matching(runs, ["navi/0.001"])] == ["toy/navi/0.001/seed1"]
    assert matching(runs, []) == runs


def test_a_run_is_done_only_as_it_is_planned_now(tmp_path: Path) -> None:
    run, other = tune_runs(study())[0], tune_runs(study(evaluations=2))[0]
    results = Results(tmp_path)
    results.append(line(run, 1.0))
    assert results.done(run) is not None
    assert other.id == run.id
    assert results.done(other) is None  # it evaluates less often
    results.append({**line(run, None), "error": "out of memory"})
    assert results.done(run) is None


@pytest.mark.parametrize("torn", ['{"id": "toy/navi', "\x00\x00\x00"])
def test_a_line_that_was_cut_short_is_passed_over_and_spoils_nothing(tmp_path: Path, torn: str) -> None:
    first, second = tune_runs(study())[:2]
    Results(tmp_path).append(line(first, 1.0))
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write(torn)
    results = Results(tmp_path)
    assert list(results.lines) == [first.id]
    results.append(line(second, 2.0))
    assert list(Results(tmp_path).lines) == [first.id, second.id]


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(json.dumps({"loss": 1.0}) + "\n")
    with pytest.raises(StudyError, match=r"runs\.jsonl, line 1: not a run"):
        Results(tmp_path)


def test_a_folder_is_for_one_command_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    lock = OneAtATime(tmp_path)
    with pytest.raises(StudyError, match="is in use by another emo-hf compare"):
        OneAtATime(tmp_path)
    lock.release()
    OneAtATime(tmp_path).release()
