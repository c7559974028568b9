"""Faults reach a real Trainer where and when they should, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Trainer, TrainerCallback

from emo_hf.integrations.accelerate import unwrap
from emo_hf.study.errors import StudyError
from emo_hf.study.fault_spec import FaultSpec
from emo_hf.study.faults import Faults, braking, spoil
from emo_hf.study.plan import Run, report_runs
from emo_hf.study.run_one import perform
from emo_hf.study.trainers import make_trainer
from emo_hf.trainer.registry import register
from tests.study.studies import ARMS, FUNCTION, study
from tests.train.tiny import save_bert, topics_csv

NOWHERE = Path("nowhere.jsonl")
STEPS = 40
TOY = {"function": FUNCTION, "steps": STEPS}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    import emo_hf

    register()
    yield
    emo_hf.unregister()


def run_of(arm: dict[str, Any], faults: dict[str, Any], task: str = "ill", seed: int = 1, rate: float = 1e-3) -> Run:
    """The run of an arm on a task that has these faults, or on its clean twin."""
    tasks = {"toy": TOY, "ill": {**TOY, "faults": {"clean": "toy", "count": 3, **faults}}}
    small = study(tasks=tasks, arms={**ARMS, "own": arm})
    everywhere = {("toy", name): rate for name in small.arms}
    runs = [run for run in report_runs(small, everywhere, following=False) if run.arm.name == "own"]
    return dataclasses.replace(next(run for run in runs if run.task.name == task), seed=seed)


ADAMW: dict[str, Any] = {"optim": "adamw_torch", "lr_scheduler_type": "constant", "max_grad_norm": 1.0}


def test_faults_come_once_in_each_part_of_a_run_and_never_at_its_beginning() -> None:
    spec = FaultSpec(kind="nan", clean="toy", count=20)
    steps = spec.begin_at(600, 7)
    assert steps == spec.begin_at(600, 7)
    assert steps != spec.begin_at(600, 8)
    assert steps == dataclasses.replace(spec, kind="poisoned").begin_at(600, 7)
    assert all(60 + 27 * i < step <= 60 + 27 * (i + 1) for i, step in enumerate(steps))
    seen = {step for seed in range(300) for step in spec.begin_at(600, seed)}
    assert seen == set(range(61, 601))


def test_faults_of_some_length_do_not_run_into_each_other_or_past_the_end() -> None:
    spec = FaultSpec(kind="rate", clean="toy", count=20, length=20)
    for seed in range(50):
        steps = spec.begin_at(600, seed)
        assert all(later - earlier >= 20 for earlier, later in pairwise([*steps, 601]))
    with pytest.raises(StudyError, match=r"20 faults of 20 steps do not fit into the last 270 of 300.*at most 13"):
        spec.begin_at(300, 1)


def test_all_arms_of_a_seed_have_their_faults_at_the_same_steps_and_data_as_without() -> None:
    arms: list[dict[str, Any]] = [
        ADAMW,
        {"optim": "emonavi"},
        {**ADAMW, "guard": "zclip"},
        {**ADAMW, "emotion": "settle"},
    ]
    lines = [perform(run_of(arm, {"kind": "poisoned"}), NOWHERE) for arm in arms]
    assert all(line["faults"] == lines[0]["faults"] for line in lines)
    assert len(lines[0]["faults"]["steps"]) == 3
    assert all(4 < step <= STEPS for step in lines[0]["faults"]["steps"])
    clean = perform(run_of(ADAMW, {"kind": "poisoned"}, task="toy"), NOWHERE)
    assert all(line["fingerprint"] == clean["fingerprint"] for line in lines)
    assert (clean["faults"], clean["skipped_faults"]) == (None, None)


def begun(run: Run, folder: Path) -> tuple[Trainer, Faults]:
    """A Trainer with faults that has not trained yet."""
    trainer = make_trainer(run, folder)
    assert run.task.faults is not None
    faults = Faults(run.task.faults, run.seed, trainer)
    trainer.add_callback(faults)
    return trainer, faults


class Felt(TrainerCallback):
    """Writes down the fast average of an emotion after each step."""

    def __init__(self) -> None:
        self.short = [0.0]

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        emo = unwrap(optimizer)
        assert emo is not None
        self.short.append(emo.emotion.short)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(
    "arm", [{"optim": "emonavi"}, {**ADAMW, "emotion": "v3.1"}], ids=["emo optimizer", "attached"]
)
def test_a_poisoned_loss_is_what_the_emotion_feels(arm: dict[str, Any], micro_batches: int, tmp_path: Path) -> None:
    arm = {**arm, "gradient_accumulation_steps": micro_batches}
    losses: dict[str, list[float]] = {}
    for factor in (1.0, 50.0):
        trainer, faults = begun(run_of(arm, {"kind": "poisoned", "factor": factor}), tmp_path)
        felt = Felt()
        trainer.add_callback(felt)
        trainer.train()
        short = felt.short
        losses[str(factor)] = [short[1], *((new - 0.7 * old) / 0.3 for old, new in pairwise(short[1:]))]
    first = faults.begins[0]
    usual, poisoned = losses["1.0"], losses["50.0"]
    assert poisoned[: first - 1] == usual[: first - 1]
    assert poisoned[first - 1] == pytest.approx(50.0 * usual[first - 1], rel=1e-4)
    assert poisoned[first] < 10.0 * usual[first - 1]  # the next one is not poisoned


def test_the_gradients_of_a_poisoned_batch_are_noisy_and_no_other_draw_is_touched() -> None:
    model = torch.nn.Linear(400, 50, bias=False)
    model.weight.grad = torch.randn_like(model.weight) + 3.0
    before, state = model.weight.grad.clone(), torch.get_rng_state()
    spoil("poisoned", model, random.Random(0))
    noise = model.weight.grad - before
    assert float(noise.std()) == pytest.approx(10.0 * float(before.std()), rel=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    model.weight.grad = before.clone()
    spoil("poisoned", model, random.Random(0))
    assert torch.equal(model.weight.grad - before, noise)  # the same for all arms


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_one_element_of_one_gradient_is_spoilt_before_gradients_are_clipped(
    kind: str, micro_batches: int, tmp_path: Path
) -> None:
    arm = {"optim": "sgd", "max_grad_norm": 1.0, "gradient_accumulation_steps": micro_batches}
    trainer, faults = begun(run_of(arm, {"kind": kind}, rate=1e-12), tmp_path)
    clip, spoilt = trainer._clip_grad_norm, {}

    def looked_at(model: torch.nn.Module) -> Any:
        wrong = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
        wrong = wrong[wrong.isnan() if kind == "nan" else wrong.isinf()]
        if len(wrong):
            spoilt[trainer.state.global_step + 1] = len(wrong)
        norm = clip(model)
        model.zero_grad()  # else the weights are lost at the first fault
        return norm

    class BetweenMicroBatches(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            assert all(p.grad.isfinite().all() for p in model.parameters())

    trainer._clip_grad_norm = looked_at
    trainer.add_callback(BetweenMicroBatches())
    trainer.train()
    assert spoilt == dict.fromkeys(faults.begins, 1)


def rates_of_steps(run: Run, folder: Path) -> tuple[list[float], list[float], list[int]]:
    """The rates that the optimizer steps with, those that stand after each step, and where faults begin."""
    trainer, faults = begun(run, folder)
    during: list[float] = []
    after: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            inner = optimizer.optimizer
            inner.register_step_pre_hook(lambda *_: during.append(inner.param_groups[0]["lr"]))

        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            after.append(optimizer.param_groups[0]["lr"])

    trainer.add_callback(Watch())
    trainer.train()
    return during, after, faults.begins


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "greedy"])
def test_a_rate_is_raised_for_the_steps_of_a_fault_alone_whatever_the_schedule(schedule: str, tmp_path: Path) -> None:
    # As far as this run goes, greedy is constant: it is stepped at evaluations only.
    arm = {**ADAMW, "lr_scheduler_type": schedule}
    during, after, begins = rates_of_steps(run_of(arm, {"kind": "rate", "length": 4}), tmp_path)
    plain, plain_after, _ = rates_of_steps(run_of(arm, {"kind": "rate", "length": 4, "factor": 1}), tmp_path)
    raised = {step for begin in begins for step in range(begin, begin + 4)}
    factors = [now / usual for now, usual in zip(during, plain, strict=True)]
    assert factors == pytest.approx([10.0 if step in raised else 1.0 for step in range(1, STEPS + 1)])
    assert after == plain_after


def test_evaluations_are_not_poisoned(tmp_path: Path) -> None:
    job = {
        "model_name_or_path": save_bert(tmp_path / "bert"), "train_file": topics_csv(tmp_path),
        "per_device_train_batch_size": 4, "max_length": 16, "use_cpu": True, "output_dir": str(tmp_path / "never"),
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    clean = {"config": str(tmp_path / "job.yaml"), "max_steps": 10}
    faults = {"kind": "poisoned", "clean": "topics", "count": 9}
    small = study(tasks={"topics": clean, "ill": {**clean, "faults": faults}}, evaluations=10)
    runs = report_runs(small, {("topics", "adamw"): 1e-12}, following=False)
    line = perform(next(run for run in runs if run.task.name == "ill"), NOWHERE)
    assert line["faults"]["steps"] == list(range(2, 11))
    losses = [loss for _, loss in line["curve"]["evaluations"]]
    assert losses == pytest.approx([losses[0]] * 11, rel=1e-3)
    trained = [loss for _, loss in line["curve"]["train"]]
    assert all(later > 20.0 * trained[0] for later in trained[1:])


@pytest.mark.parametrize("guard", ["zclip", "skip"])
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_guard_skips_what_ends_a_run_without_one(guard: str, kind: str) -> None:
    alone = perform(run_of(ADAMW, {"kind": kind}), NOWHERE)
    assert alone["diverged"]
    assert alone["skipped_faults"] == 0
    arm = {"optim": "adamw_torch", "lr_scheduler_type": "constant", "guard": guard}
    guarded = perform(run_of(arm, {"kind": kind}), NOWHERE)
    assert not guarded["diverged"]
    assert (guarded["skipped_faults"], guarded["braked"]) == (3, 0)


def test_a_guard_takes_the_place_of_clipping_unless_both_are_asked_for(tmp_path: Path) -> None:
    arm = {"optim": "adamw_torch", "guard": "skip"}
    assert make_trainer(run_of(arm, {"kind": "nan"}), tmp_path).args.max_grad_norm == 0.0
    both = {**arm, "max_grad_norm": 0.5}
    assert make_trainer(run_of(both, {"kind": "nan"}), tmp_path).args.max_grad_norm == 0.5
    assert make_trainer(run_of({"optim": "adamw_torch"}, {"kind": "nan"}), tmp_path).args.max_grad_norm == 1.0


def test_steps_that_the_law_leaves_out_are_counted_and_all_decisions_are_kept() -> None:
    arm = {**ADAMW, "emotion": "settle", "emotion_args": {"evaluations": False, "stop": False}}
    tasks = {
        "toy": {**TOY, "steps": 700},
        "ill": {**TOY, "steps": 700, "faults": {"kind": "poisoned", "clean": "toy", "count": 42}},
    }
    small = study(tasks=tasks, arms={**ARMS, "own": arm})
    run = report_runs(small, {("toy", "own"): 1e-3}, following=False)[-1]
    line = perform(run, NOWHERE)
    skipped = [step for step, text in line["emotion"]["decisions"] if text.startswith("skipped")]
    faulty = set(line["faults"]["steps"])
    assert len(skipped) > 32  # what the law itself keeps
    assert skipped == sorted(set(skipped))
    assert line["skipped_faults"] == len(faulty.intersection(skipped))
    assert line["braked"] == sum(not any(0 <= step - fault <= 5 for fault in faulty) for step in skipped)


def test_a_brake_has_a_cause_at_a_fault_shortly_after_it_and_where_the_loss_is_lost() -> None:
    faults = {"kind": "nan", "steps": [10, 20], "length": 1, "reach": 5}
    losses = [1.0] * 30
    losses[28] = math.nan
    found = braking(faults, [9, 10, 15, 16, 29], losses)
    assert found == {"faults": faults, "braked": 2, "skipped_faults": 1}  # 9 and 16
    long = {"kind": "rate", "steps": [10], "length": 4, "reach": 4}
    assert braking(long, [13, 14, 15], losses) == {"faults": long, "braked": 1, "skipped_faults": 1}
    lost = {**faults, "steps": [20, 30]}  # from 29 on there are no weights left to save
    assert braking(lost, [20, 30], losses) == {"faults": lost, "braked": 0, "skipped_faults": 1}
    assert braking(None, [3], losses) == {"faults": None, "braked": 1, "skipped_faults": None}
