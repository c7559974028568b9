"""What is read of a run: the Trainer's state, TensorBoard's events, and which of them has got further."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import emo_hf
from emo_hf.laws import LAWS
from emo_hf.plot.braking import braked
from emo_hf.plot.errors import PlotError
from emo_hf.plot.figure import figure
from emo_hf.plot.run import Run, named_apart, read_run
from tests import tiny
from tests.plot.histories import history


def save_state(folder: Path, **state: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real Trainer's run with checkpoints and TensorBoard, evaluated twice."""
    folder = tmp_path_factory.mktemp("trained")
    emo_hf.register()
    try:
        trainer = tiny.trainer(
            folder, max_steps=8, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=4,
            eval_dataset=tiny.examples(8), report_to="tensorboard", optim_args="emo_law=settle",
        )  # fmt: skip
        trainer.train()
    finally:
        emo_hf.unregister()
    return folder, trainer.state.log_history


def test_events_are_the_log_lines_of_the_trainer(trained: Any) -> None:
    folder, logged = trained
    read = read_run(folder / "runs").history
    for kind in ("loss", "eval_loss"):
        ours, theirs = ([line for line in lines if kind in line] for lines in (read, logged))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one[kind] == pytest.approx(other[kind], rel=1e-5)
    last = [line for line in read if "loss" in line][-1]
    assert {name for name in last if name.startswith("emo/")} == {
        name for line in logged for name in line if name.startswith("emo/")
    }


def test_while_a_run_is_going_its_events_go_on_where_its_last_checkpoint_ends(trained: Any) -> None:
    folder, logged = trained
    assert not (folder / "trainer_state.json").exists()
    read = read_run(folder)
    assert read.law == "settle"
    losses = [line for line in read.history if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 9))
    assert losses[0]["loss"] == logged[0]["loss"], "from the state, to the last digit"
    assert read.has_ended
    assert not read_run(folder / "checkpoint-3").has_ended


def test_a_run_that_was_begun_anew_takes_the_place_of_what_the_earlier_one_said(tmp_path: Path) -> None:
    for name, start, loss in (("first", 1, 5.0), ("second", 3, 1.0)):
        writer = SummaryWriter(str(tmp_path / name))
        for step in range(start, start + 4):
            # Times are given, not taken: the two may be made within one tick of the clock.
            writer.add_scalar("train/loss", loss, step, walltime=start * 100.0 + step)
        writer.close()
    read = read_run(tmp_path)
    assert [(line["step"], line["loss"]) for line in read.history] == [
        (1, 5.0), (2, 5.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0),
    ]  # fmt: skip


def test_a_loop_of_ones_own_that_writes_the_emotion_alone_is_drawn(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    with SummaryWriter(str(tmp_path)) as writer:
        optimizer = emo_hf.EmoNavi([weight], lr=0.1, writer=writer)
        for _ in range(5):
            optimizer.zero_grad()
            loss = weight.square().sum()
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
    made = figure(read_run(tmp_path))
    assert made.axes[0].get_legend_handles_labels()[1] == ["short average", "long average"]
    assert len(made.axes) == 5


def test_the_newer_of_the_runs_own_state_and_its_last_checkpoints_counts(tmp_path: Path) -> None:
    save_state(tmp_path, global_step=20, log_history=history(20))
    save_state(tmp_path / "checkpoint-40", global_step=40, log_history=history(40))
    assert read_run(tmp_path).last_step == 40
    save_state(tmp_path, global_step=50, log_history=history(50))
    assert read_run(tmp_path).last_step == 50


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    save_state(tmp_path / "checkpoint-20", global_step=20, log_history=history(20))
    save_state(tmp_path / "checkpoint-40")
    assert read_run(tmp_path).last_step == 20
    (tmp_path / "checkpoint-40" / "trainer_state.json").write_text('{"log_hist', encoding="utf-8")
    assert read_run(tmp_path).last_step == 20
    shutil.rmtree(tmp_path / "checkpoint-20")
    with pytest.raises(PlotError, match="is not a Trainer's state"):
        read_run(tmp_path)


def test_runs_of_the_same_name_are_told_apart_by_the_folders_above(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    named = named_apart([Run(name=place.name) for place in places], places)
    assert [run.name for run in named] == ["a/run", "b/run", "other"]


def test_a_law_has_braked_where_its_scalar_or_its_smallest_factor_says_so() -> None:
    lines = [
        {"step": step, "emo/scalar": scalar, "emo/coefficient_min": low}
        for step, scalar, low in [(10, 0.0, 1.0), (20, 0.7, 0.3), (30, 0.3, 1.3), (40, 0.0, 0.2), (50, -0.62, 0.38)]
    ]
    assert braked("v3.1", lines) == [(10, 10), (30, 10)]
    assert braked("v3.9", lines) == [(10, 10), (40, 10)], "by σ alone: its factors do not follow from σ"
    assert braked("settle", lines) is None
    assert braked(None, lines) is None
    assert {law for law in LAWS if braked(law, lines) is None} == {"settle"}
