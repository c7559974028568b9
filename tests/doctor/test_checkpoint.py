"""`emo-hf doctor CHECKPOINT`: what its emotion says, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from emo_hf.cli import main
from emo_hf.doctor.checkpoint import examine, newest_checkpoint
from tests import tiny
from tests.plot.histories import DECISIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of 10 steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    emo_hf.register()
    try:
        tiny.trainer(folder, max_steps=10, save_strategy="steps", save_steps=5).train()
    finally:
        emo_hf.unregister()
    return folder


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(run / "checkpoint-10", tmp_path / "checkpoint-10"))


def examined(place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", str(place)])
    return code, json.loads(capsys.readouterr().out)


def failed(said: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["said"] for finding in said["findings"] if finding["passed"] is False}


def change_state(checkpoint: Path, **changes: Any) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    (checkpoint / "trainer_state.json").write_text(json.dumps(state | changes), encoding="utf-8")


def test_it_says_what_the_emotion_of_the_newest_checkpoint_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = examined(run, capsys)
    assert code == 0
    saved = torch.load(run / "checkpoint-10" / "optimizer.pt", weights_only=True)["param_groups"][0]["emotion"]
    facts = said["facts"]
    for words, key in (
        ("law", "law"), ("fast average", "short"), ("slow average", "long"), ("scalar σ", "scalar"),
        ("factor c", "coefficient"), ("losses felt", "observations"), ("losses left out", "skipped"),
    ):  # fmt: skip
        assert facts[words] == saved[key]
    assert (facts["law"], facts["losses felt"], facts["step"]) == ("v3.1", 10, 10)
    assert (facts["optimizer"], facts["stop signal"], facts["decisions"]) == ("EmoNavi v3.1", False, [])
    assert [(finding["name"], finding["passed"]) for finding in said["findings"]] == [
        ("files", True), ("emotion", True), ("numbers", True), ("losses", True),
    ]  # fmt: skip
    assert main(["doctor", str(run / "checkpoint-5")]) == 0
    text = capsys.readouterr().out
    assert "losses felt       5\n" in text
    assert "decisions         none\n" in text


def test_it_says_what_was_decided(checkpoint: Path) -> None:
    change_state(checkpoint, stateful_callbacks={"emo_hf": {"law": "v3.1", "decisions": list(map(asdict, DECISIONS))}})
    first, *_, last = examine(checkpoint).facts["decisions"]
    assert first.startswith("step 12: ")
    assert first.endswith("the loss is far above where it began")
    assert last.endswith("3 evaluations were no better")


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
    assert (said["facts"]["losses felt"], said["facts"]["law"]) == (3, "v3.1")


def test_losses_that_did_not_arrive_are_told(checkpoint: Path) -> None:
    change_state(checkpoint, global_step=12)
    report = examine(checkpoint)
    assert report.exit_code == 1
    assert "FAILED  losses: 10 felt, 0 left out in 12 steps" in str(report)
    change_state(checkpoint, global_step=11)
    assert examine(checkpoint).exit_code == 0


def test_damage_is_told_and_nothing_is_executed(checkpoint: Path) -> None:
    packed = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for group in packed["param_groups"]:
        group["emotion"]["long"] = float("nan")
    torch.save(packed, checkpoint / "optimizer.pt")
    report = examine(checkpoint)
    assert report.exit_code == 1
    (numbers,) = (finding for finding in report.findings if finding.name == "numbers")
    assert numbers.passed is False
    assert "nan" in numbers.said

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (checkpoint / "executed",))

    torch.save({"param_groups": [Evil()]}, checkpoint / "optimizer.pt")
    report = examine(checkpoint)
    assert report.exit_code == 1
    assert "optimizer.pt cannot be read" in str(report)
    assert not (checkpoint / "executed").exists()


def test_a_checkpoint_that_was_cut_short_is_told(checkpoint: Path) -> None:
    whole = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    report = examine(checkpoint)
    assert report.exit_code == 1
    assert "FAILED  files: not saved to its end: optimizer.pt" in str(report)


@pytest.mark.parametrize("pieces", ["optimizer_0", "global_step10"])
def test_a_state_in_pieces_is_said_not_to_have_been_read(checkpoint: Path, pieces: str) -> None:
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / pieces).mkdir()
    report = examine(checkpoint)
    assert report.exit_code == 0
    assert f"the optimizer's state is in pieces, in {pieces}" in str(report)


def test_the_newest_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
