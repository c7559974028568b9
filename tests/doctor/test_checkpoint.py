"""`emo-hf doctor CHECKPOINT`: what its emotion says, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from emo_hf.cli import main
from tests import tiny
from tests.plot.histories import DECISIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real run of 10 steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    emo_hf.register()
    tiny.trainer(folder, max_steps=10, save_strategy="steps", save_steps=5).train()
    yield folder
    emo_hf.unregister()


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(run / "checkpoint-10", tmp_path / "checkpoint-10"))


Findings = dict[str, tuple[bool | None, str]]


@pytest.fixture
def examined(capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit code, facts, and name → (passed, what was said and the remedy)."""

    def examine(place: Path) -> tuple[int, dict[str, Any], Findings]:
        code = main(["doctor", "--json", str(place)])
        said = json.loads(capsys.readouterr().out)
        found = {each["name"]: (each["passed"], f"{each['said']} {each['remedy']}") for each in said["findings"]}
        return code, said["facts"], found

    return examine


def change_state(checkpoint: Path, **changes: Any) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    (checkpoint / "trainer_state.json").write_text(json.dumps(state | changes), encoding="utf-8")


def test_it_says_what_the_emotion_of_the_newest_checkpoint_says(
    run: Path, examined: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, facts, found = examined(run)
    saved = torch.load(run / "checkpoint-10" / "optimizer.pt", weights_only=True)["param_groups"][0]["emotion"]
    for words, key in (("fast average", "short"), ("slow average", "long"), ("factor c", "coefficient")):
        assert facts[words] == saved[key]
    assert (facts["law"], facts["losses felt"], facts["step"]) == ("v3.1", 10, 10)
    assert (facts["optimizer"], facts["stop signal"], facts["decisions"]) == ("EmoNavi v3.1", False, [])
    assert code == 0
    assert [(name, passed) for name, (passed, _) in found.items()] == [
        ("files", True), ("emotion", True), ("numbers", True), ("losses", True),
    ]  # fmt: skip
    assert main(["doctor", str(run / "checkpoint-5")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"losses felt       5", "decisions         none", "ok      files: whole"} <= set(lines)


def test_an_emotion_that_lies_with_the_trainers_notes_is_found_and_none_is_told_with_the_remedy(
    tmp_path: Path, examined: Any
) -> None:
    callbacks = [emo_hf.EmoCallback(emotion="v3.1")]
    saving = {"optim": "adamw_torch", "max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    tiny.trainer(tmp_path, callbacks=callbacks, **saving).train()
    place = tmp_path / "checkpoint-3"
    (place / "optimizer.pt").rename(tmp_path / "kept.pt")  # as FSDP leaves it elsewhere
    code, facts, _ = examined(place)
    assert (code, facts["losses felt"], facts["law"]) == (0, 3, "v3.1")
    change_state(place, stateful_callbacks={})
    packed = torch.load(tmp_path / "kept.pt", weights_only=True)
    for group in packed["param_groups"]:
        group.pop("emotion", None)
    torch.save(packed, place / "optimizer.pt")
    code, _, found = examined(place)
    passed, said = found["emotion"]
    assert (code, passed) == (1, False)
    assert "it is not of an emo optimizer" in said
    assert "--optim emonavi" in said


def test_decisions_are_told_and_losses_that_did_not_arrive(checkpoint: Path, examined: Any) -> None:
    change_state(checkpoint, stateful_callbacks={"emo_hf": {"law": "v3.1", "decisions": list(map(asdict, DECISIONS))}})
    first, *_, last = examined(checkpoint)[1]["decisions"]
    assert first.startswith("step 12: ")
    assert first.endswith("the loss is far above where it began")
    assert last.endswith("3 evaluations were no better")
    for steps, code in ((11, 0), (12, 1)):  # of which 10 were felt
        change_state(checkpoint, global_step=steps)
        assert examined(checkpoint)[0] == code
    assert "10 felt, 0 left out in 12 steps" in examined(checkpoint)[2]["losses"][1]


def test_damage_is_told_and_nothing_is_executed_and_a_state_in_pieces_is_not_read(
    checkpoint: Path, examined: Any
) -> None:
    file, executed = checkpoint / "optimizer.pt", checkpoint / "executed"
    whole, packed = file.read_bytes(), torch.load(file, weights_only=True)
    for group in packed["param_groups"]:
        group["emotion"]["long"] = float("nan")

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (executed,))

    for damage, name, said in (
        (packed, "numbers", "resume from the checkpoint before it"),
        ({"param_groups": [Evil()]}, "emotion", "optimizer.pt cannot be read"),
        (whole[: len(whole) // 2], "files", "not saved to its end: optimizer.pt"),
    ):
        file.write_bytes(damage) if isinstance(damage, bytes) else torch.save(damage, file)
        code, _, found = examined(checkpoint)
        assert (code, found[name][0]) == (1, False)
        assert said in found[name][1]
    assert not executed.exists()
    file.unlink()
    for pieces in ("optimizer_0", "global_step10"):
        (checkpoint / pieces).mkdir()
        code, _, found = examined(checkpoint)
        assert (code, found["emotion"][0]) == (0, None)
        assert f"the optimizer's state is in pieces, in {pieces}" in found["emotion"][1]
        (checkpoint / pieces).rmdir()
