"""`emo-hf doctor CHECKPOINT`: what its emotion says, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from emo_hf.cli import main
from emo_hf.doctor.checkpoint import examine, newest_checkpoint
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of 70 steps under settle, which has begun at step 64, with two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    emo_hf.register()
    try:
        trainer = tiny.trainer(
            folder, max_steps=70, save_strategy="steps", save_steps=35, logging_steps=10, learning_rate=3e-3,
            optim_args="emo_law=settle", data=tiny.examples(64),
        )  # fmt: skip
        trainer.train()
    finally:
        emo_hf.unregister()
    return folder


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(run / "checkpoint-70", tmp_path / "checkpoint-70"))


def examined(place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", str(place)])
    return code, json.loads(capsys.readouterr().out)


def failed(said: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["said"] for finding in said["findings"] if finding["passed"] is False}


def test_it_says_what_the_emotion_says_and_has_decided(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = examined(run, capsys)  # the newest checkpoint of the run
    assert code == 0
    group = torch.load(run / "checkpoint-70" / "optimizer.pt", weights_only=True)["param_groups"][0]
    saved = group["emotion"]
    emotion = said["facts"]["emotion"]
    assert emotion["law"] == "settle"
    told = {"short average": "short", "long average": "long", "scalar σ": "scalar", "coefficient c": "coefficient"}
    for words, key in (told | {"losses felt": "observations", "peak": "peak"}).items():
        assert emotion[words] == saved[key]
    assert emotion["quiet"] is False
    assert said["facts"]["checkpoint"]["optimizer"] == "EmoNavi v3.1"
    assert said["facts"]["checkpoint"]["step"] == 70
    assert said["facts"]["decisions"]["so far"][0].startswith("step 64: started: ")
    assert main(["doctor", str(run / "checkpoint-35")]) == 0
    text = capsys.readouterr().out
    assert "losses felt      35" in text
    assert "so far  none" in text


def test_an_optimizer_without_an_emotion_is_told_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = tiny.trainer(tmp_path, optim="adamw_torch", max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    code, said = examined(tmp_path / "checkpoint-2", capsys)
    assert code == 1
    assert "it is not of an emo optimizer" in failed(said)["emotion"]
    assert "--optim emonavi" in said["findings"][-1]["remedy"]


def test_an_emotion_that_lies_with_the_trainers_notes_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [emo_hf.EmoCallback(emotion="v3.1")]
    trainer = tiny.trainer(
        tmp_path, optim="adamw_torch", max_steps=3, save_strategy="steps", save_steps=3, callbacks=callbacks
    )
    trainer.train()
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()  # as FSDP leaves it elsewhere
    code, said = examined(tmp_path / "checkpoint-3", capsys)
    assert code == 0
    assert said["facts"]["emotion"]["losses felt"] == 3
    assert said["facts"]["emotion"]["law"] == "v3.1"


def test_losses_that_did_not_arrive_are_told(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    state["global_step"] = 700
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    report = examine(checkpoint)
    assert report.exit_code == 1
    assert "70 were felt in 700 steps" in report.text()


def test_damage_is_told_and_nothing_is_executed(checkpoint: Path) -> None:
    packed = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for group in packed["param_groups"]:
        group["emotion"]["long"] = float("nan")
    torch.save(packed, checkpoint / "optimizer.pt")
    report = examine(checkpoint)
    assert report.exit_code == 1
    assert "FAILED  numbers: the checkpoint's emotion is damaged: nan is not a finite number" in report.text()

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (checkpoint / "executed",))

    torch.save({"param_groups": [Evil()]}, checkpoint / "optimizer.pt")
    report = examine(checkpoint)
    assert report.exit_code == 1
    assert "optimizer.pt cannot be read" in report.text()
    assert not (checkpoint / "executed").exists()


def test_a_checkpoint_that_was_cut_short_is_told(checkpoint: Path) -> None:
    whole = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    report = examine(checkpoint)
    assert report.exit_code == 1
    assert "FAILED  files: not saved to its end: optimizer.pt" in report.text()


@pytest.mark.parametrize("pieces", ["optimizer_0", "global_step70"])
def test_a_state_in_pieces_is_said_not_to_have_been_read(checkpoint: Path, pieces: str) -> None:
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / pieces).mkdir()
    report = examine(checkpoint)
    assert report.exit_code == 0
    assert f"the optimizer's state is in pieces, in {pieces}" in report.text()


def test_the_newest_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_checkpoint_is_a_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: bool
) -> None:
    if make:
        (tmp_path / "folder").mkdir()
    assert main(["doctor", str(tmp_path / "folder")]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert ("holds neither" if make else "there is no checkpoint and no script") in said.err
