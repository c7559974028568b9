"""What is read of a run: the Trainer's state, TensorBoard's events, and which of them has got further."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import emo_hf
from emo_hf.cli_errors import UserError
from emo_hf.plot.figure import picture_of
from emo_hf.plot.main import main
from emo_hf.plot.run import Run, named_apart, read_run
from tests import tiny
from tests.plot.histories import DECISIONS, history, save_state


def test_a_trainers_events_are_its_log_lines_and_go_on_where_its_last_checkpoint_ends(tmp_path: Path) -> None:
    emo_hf.register()
    try:
        trainer = tiny.trainer(
            tmp_path, max_steps=8, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=4,
            eval_dataset=tiny.examples(8), report_to="tensorboard",
        )  # fmt: skip
        trainer.train()
    finally:
        emo_hf.unregister()
    logged, events = trainer.state.log_history, read_run(tmp_path / "runs").history
    for kind in ("loss", "eval_loss"):
        ours, theirs = ([(line["step"], line[kind]) for line in lines if kind in line] for lines in (events, logged))
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)
    last = [line for line in events if "loss" in line][-1]
    assert {name for name in last if name.startswith("emo/")} == {
        name for line in logged for name in line if name.startswith("emo/")
    }
    assert not (tmp_path / "trainer_state.json").exists(), "as while it is going"
    read = read_run(tmp_path)
    assert read.law == "v3.1"
    assert read.series("loss")[0] == list(range(1, 9))
    assert read.series("loss")[1][0] == logged[0]["loss"], "from the state, to the last digit"
    assert read_run(tmp_path / "checkpoint-3").last_step == 3


def test_a_run_that_was_begun_anew_takes_the_place_of_what_the_earlier_one_said(tmp_path: Path) -> None:
    for name, start, loss in (("first", 1, 5.0), ("second", 3, 1.0)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in range(start, start + 4):
                # Times are given, not taken: the two may be made within one tick of the clock.
                writer.add_scalar("train/loss", loss, step, walltime=start * 100.0 + step)
    assert read_run(tmp_path).series("loss") == ([1, 2, 3, 4, 5, 6], [5.0, 5.0, 1.0, 1.0, 1.0, 1.0])


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
    panels = picture_of([read_run(tmp_path)]).panels
    assert [panel.what for panel in panels] == ["loss", "learning rate", "scalar σ", "factor c"]
    assert [curve.name for curve in panels[0].curves] == ["fast average", "slow average"]


def test_the_newest_whole_state_of_the_run_and_its_checkpoints_counts(tmp_path: Path) -> None:
    save_state(tmp_path, history(20))
    save_state(tmp_path / "checkpoint-9", history(10))
    save_state(tmp_path / "checkpoint-40", history(40))
    assert read_run(tmp_path).last_step == 40
    save_state(tmp_path, history(50), law="settle", decisions=DECISIONS)
    read = read_run(tmp_path)
    assert (read.name, read.last_step, read.law, read.decisions) == (tmp_path.name, 50, "settle", DECISIONS)
    assert read_run(tmp_path / "trainer_state.json").name == tmp_path.name
    (tmp_path / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-40" / "trainer_state.json").write_text('{"log_hist', encoding="utf-8")
    assert read_run(tmp_path).last_step == 10, "what was cut short is passed over"
    shutil.rmtree(tmp_path / "checkpoint-9")
    with pytest.raises(UserError, match="is not a Trainer's state"):
        read_run(tmp_path)


def test_runs_of_the_same_name_are_told_apart_by_the_folders_above(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    named = named_apart([Run(name=place.name) for place in places], places)
    assert [run.name for run in named] == ["a/run", "b/run", "other"]


def notes(decisions: str) -> str:
    return '{"log_history": [], "stateful_callbacks": {"emo_hf": {"decisions": ' + decisions + "}}}"


BAD = {
    '{"log_history": 1}': "is not a Trainer's state",
    "[]": "is not a Trainer's state",
    "[" * 100_000: "is not a Trainer's state",
    '{"log_history": ["x"]}': "is not a Trainer's state",
    '{"log_history": [{"step": 1, "loss": "low"}]}': "could not convert string to float: 'low'",
    '{"log_history": [{"step": 1, "eval_loss": [1]}]}': "not 'list'",
    '{"log_history": [{"step": 1, "emo/scalar": 1' + "0" * 400 + "}]}": "int too large to convert to float",
    '{"log_history": [{"step": Infinity, "loss": 1}]}': "cannot convert float infinity to integer",
    notes('[{"kind": "eased"}]'): "a decision's kind is 'eased', not one of skipped, lowered, done, compl",
    notes('[["x"]]'): "is not a Trainer's state",
    '{"log_history": []}': "no loss was logged in the run 'run'",
    '{"log_history": [{"loss": 1.0}]}': "no loss was logged",
}


def test_what_cannot_be_drawn_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = save_state(tmp_path / "run", []) / "trainer_state.json"
    for content, said in BAD.items():
        state.write_text(content, encoding="utf-8")
        assert main([str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.startswith("emo-hf plot: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "run" / "run.png").exists()
    (tmp_path / "events.out.tfevents.1").write_bytes(b"no events")
    for place, said in (
        ("nowhere", "there is no file or folder"),
        ("/dev/null", "is no run: it holds neither trainer_state.json"),
        ("events.out.tfevents.1", "no loss was logged"),
    ):
        assert main([str(tmp_path / place)]) == 2
        assert said in capsys.readouterr().err
