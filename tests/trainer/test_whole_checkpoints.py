"""A run that is killed or runs out of disk goes on from its newest checkpoint that was saved to its end."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

import emo_hf
from emo_hf.cli_errors import UserError
from emo_hf.train.output import checkpoint_to_resume
from emo_hf.trainer.checkpoints import what_is_missing
from tests import tiny
from tests.emo_cases import assert_identical
from tests.trainer.kit import emo_of, said, trained

ROOT = Path(__file__).parents[2]
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
FAILS_TO_WRITE = (OSError, RuntimeError, SafetensorError)
"""In torch's own words, which depend on the byte that did not fit: "basic_ios::clear", say."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with a checkpoint at every second."""
    emo_hf.register()
    folder = tmp_path_factory.mktemp("run")
    trained(folder, **SAVING)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def tear(file: Path, share: float = 0.999) -> None:
    content = file.read_bytes().rstrip()
    file.write_bytes(content[: int(share * len(content))])


def test_the_newest_checkpoint_that_is_whole_is_taken_whatever_lies_beside_it(run: Path, copy: Path) -> None:
    assert [what_is_missing(folder) for folder in run.glob("checkpoint-*")] == [None] * 3
    (copy / "checkpoint-6" / "notes.txt").write_text("{")  # what is not the Trainer's does not matter
    (copy / "checkpoint-last").mkdir()
    (copy / "checkpoint-99").write_text("a file")
    (copy / "checkpoint-6").rename(copy / "checkpoint-10")  # the most steps, not the last letters
    assert emo_hf.last_whole_checkpoint(str(copy)) == str(copy / "checkpoint-10")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "checkpoint-10" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in str(what_is_missing(copy / "checkpoint-10"))
    (copy / "checkpoint-4" / "trainer_state.json").unlink()
    (copy / "checkpoint-8").mkdir()
    assert emo_hf.last_whole_checkpoint(copy) == str(copy / "checkpoint-2")
    tear(copy / "checkpoint-2" / "optimizer.pt", 0.0)
    assert emo_hf.last_whole_checkpoint(copy) is None
    assert emo_hf.last_whole_checkpoint(copy / "nowhere") is None


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("model.safetensors", 0.0), ("model.safetensors", 0.999), ("optimizer.pt", 0.999), ("rng_state.pth", 0.3),
        ("trainer_state.json", 0.999),
    ],
)  # fmt: skip
def test_a_checkpoint_with_a_file_that_is_cut_short_is_passed_over_by_name(
    name: str, share: float, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tear(copy / "checkpoint-6" / name, share)
    assert emo_hf.last_whole_checkpoint(copy) == str(copy / "checkpoint-4")
    (line,) = said(caplog)
    assert "checkpoint-6" in line
    assert name in line


def test_a_run_goes_on_over_a_torn_checkpoint_to_the_same_end_and_leaves_those_that_it_does_not_save_alone(
    copy: Path, run: Path
) -> None:
    tear(copy / "checkpoint-6" / "optimizer.pt")
    trained(copy, **SAVING, resume=emo_hf.last_whole_checkpoint(copy))
    for name, load in (("model.safetensors", load_file), ("optimizer.pt", torch.load)):
        assert_identical(load(copy / "checkpoint-6" / name), load(run / "checkpoint-6" / name))
    trained(copy, **SAVING | {"save_steps": 3})
    assert [what_is_missing(copy / f"checkpoint-{step}") for step in (2, 3, 4, 6)] == [None] * 4


def test_who_names_a_torn_checkpoint_is_told_what_is_wrong_with_it(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tear(copy / "checkpoint-6" / "model.safetensors")
    for optim, step in (("emonavi", 6), ("emonavi", 4), ("adamw_torch", 6)):
        tiny.trainer(copy, optim=optim, resume_from_checkpoint=str(copy / f"checkpoint-{step}"))
    (line,) = said(caplog)
    assert "model.safetensors" in line
    assert "last_whole_checkpoint" in line
    with pytest.raises(UserError, match=r"checkpoint-6' was not saved to its end: model.safetensors .* bytes"):
        checkpoint_to_resume(str(copy), str(copy / "checkpoint-6"), overwrite=False)
    assert checkpoint_to_resume(str(copy), str(copy), overwrite=False) == str(copy / "checkpoint-4")


# Runs that are killed


def forked(function: Callable[..., None], *arguments: Any) -> int:
    """The exit code of a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return int(process.exitcode or 0)


def killed_while_saving(folder: Path, resume: str, method: str, changes: dict[str, Any]) -> None:
    """A run that dies at the save of step 4, when a method of the Trainer is about to write the next file."""
    trainer = tiny.trainer(folder, **changes)
    save = getattr(trainer, method)

    def die(*given: Any, **named: Any) -> None:
        if trainer.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        save(*given, **named)

    setattr(trainer, method, die)
    trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("save_model", {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": tiny.examples(4)}),
        ("_save_rng_state", {"save_strategy": "epoch", "data": tiny.examples(8), "num_train_epochs": 3}),
    ],
    ids=["before the weights", "after the optimizer"],
)
def test_a_checkpoint_of_which_half_is_of_another_run_is_not_taken_for_a_whole_one(
    method: str, changes: dict[str, Any], copy: Path
) -> None:
    resume, other = str(copy / "checkpoint-2"), {**SAVING, "learning_rate": 5e-3, **changes}
    shutil.rmtree(copy / "checkpoint-6")
    assert forked(killed_while_saving, copy, resume, method, other) == -signal.SIGKILL
    files = {path.name for path in (copy / "checkpoint-4").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth"} <= files, "all that a whole one has, but for one"
    assert what_is_missing(copy / "checkpoint-4") == "trainer_state.json is missing"
    assert emo_hf.last_whole_checkpoint(copy) == resume
    trained(copy, **other, resume=resume)
    assert what_is_missing(copy / "checkpoint-4") is None


@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_as_one_that_was_let_alone() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/kill_resume.py", "--kills", "2", "--steps", "20", "--longest_life", "0.5"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run ended the same" in done.stdout


# Disks that are full


class NoSpace(TrainerCallback):
    """From step 3 on, no file may be larger than the model: the optimizer's cannot be written."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            weights = (Path(args.output_dir) / "checkpoint-2" / "model.safetensors").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (weights + 1000, weights + 1000))


def run_out_of_disk(folder: Path) -> None:
    with pytest.raises(FAILS_TO_WRITE):
        trained(folder, **SAVING, callbacks=[NoSpace()])


def test_a_file_that_cannot_be_written_raises_and_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    assert forked(run_out_of_disk, tmp_path) == 0
    assert what_is_missing(tmp_path / "checkpoint-4") is not None
    found = emo_hf.last_whole_checkpoint(tmp_path)
    assert found == str(tmp_path / "checkpoint-2")
    assert emo_of(trained(tmp_path, **SAVING, resume=found)).emotion.observations == 6


def test_a_disk_that_is_full_is_told_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a file system of its own that holds one checkpoint and a part of the next."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        with pytest.raises(FAILS_TO_WRITE):
            trained(tmp_path, **SAVING | {"max_steps": 20})
        found = Path(str(emo_hf.last_whole_checkpoint(tmp_path)))
        torn = found.with_name(f"checkpoint-{int(found.name.removeprefix('checkpoint-')) + 2}")
        assert what_is_missing(torn) is not None
        (line,) = (line for line in said(caplog) if line.startswith(f"The disk is full: {torn}"))
        assert "last_whole_checkpoint" in line
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
