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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import emo_hf
from emo_hf.cli_errors import UserError
from emo_hf.integrations.accelerate import unwrap
from emo_hf.train.output import checkpoint_to_resume
from emo_hf.trainer.checkpoints import what_is_missing
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with a checkpoint at every second."""
    folder = tmp_path_factory.mktemp("run")
    emo_hf.register()
    tiny.trainer(folder, save_strategy="steps", save_steps=2, max_steps=6).train()
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_every_checkpoint_of_a_healthy_run_is_whole_and_the_newest_is_taken(run: Path) -> None:
    assert [what_is_missing(folder) for folder in run.glob("checkpoint-*")] == [None] * 3
    assert emo_hf.last_whole_checkpoint(run) == str(run / "checkpoint-6")
    assert emo_hf.last_whole_checkpoint(str(run)) == str(run / "checkpoint-6")


def test_the_newest_is_the_one_of_most_steps_not_of_the_last_letters(copy: Path) -> None:
    (copy / "checkpoint-6").rename(copy / "checkpoint-10")
    assert emo_hf.last_whole_checkpoint(copy) == str(copy / "checkpoint-10")


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_file_that_is_cut_short_is_passed_over_by_name(
    name: str, share: float, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = copy / "checkpoint-6" / name
    content = file.read_bytes().rstrip()
    file.write_bytes(content[: int(share * len(content))])
    assert emo_hf.last_whole_checkpoint(copy) == str(copy / "checkpoint-4")
    (record,) = caplog.records
    assert "checkpoint-6" in record.getMessage()
    assert name in record.getMessage()


def test_a_checkpoint_without_the_file_that_is_written_last_is_passed_over(copy: Path) -> None:
    (copy / "checkpoint-6" / "trainer_state.json").unlink()
    (copy / "checkpoint-8").mkdir()
    assert emo_hf.last_whole_checkpoint(copy) == str(copy / "checkpoint-4")


def test_a_checkpoint_that_lacks_a_shard_is_passed_over(copy: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "checkpoint-6" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in str(what_is_missing(copy / "checkpoint-6"))


def test_without_a_whole_checkpoint_a_run_begins_at_the_beginning(copy: Path, tmp_path: Path) -> None:
    for folder in copy.glob("checkpoint-*"):
        (folder / "optimizer.pt").write_bytes(b"")
    assert emo_hf.last_whole_checkpoint(copy) is None
    assert emo_hf.last_whole_checkpoint(tmp_path / "nowhere") is None


def test_files_that_are_not_the_trainers_do_not_matter(copy: Path) -> None:
    (copy / "checkpoint-6" / "notes.txt").write_text("{")
    (copy / "checkpoint-last").mkdir()
    (copy / "checkpoint-99").write_text("a file")
    assert emo_hf.last_whole_checkpoint(copy) == str(copy / "checkpoint-6")


def test_a_run_goes_on_over_the_torn_checkpoint_to_the_same_end(copy: Path, run: Path) -> None:
    torn = copy / "checkpoint-6" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    again = tiny.trainer(copy, save_strategy="steps", save_steps=2, max_steps=6)
    again.train(resume_from_checkpoint=emo_hf.last_whole_checkpoint(copy))
    assert emo_hf.last_whole_checkpoint(copy) == str(copy / "checkpoint-6")
    for name in ("model.safetensors", "optimizer.pt"):
        assert (copy / "checkpoint-6" / name).read_bytes() == (run / "checkpoint-6" / name).read_bytes()


def run_out_of_disk(folder: Path, report: Any) -> None:
    """Train until a file cannot be written; 40 kB is enough for the model, and not for the optimizer."""
    from transformers import TrainerCallback

    class NoSpace(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                weights = (folder / "checkpoint-2" / "model.safetensors").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (weights + 1000, weights + 1000))

    trainer = tiny.trainer(folder, save_strategy="steps", save_steps=2, max_steps=6, callbacks=[NoSpace()])
    try:
        trainer.train()
    except Exception as error:  # noqa: BLE001
        report.put(f"{type(error).__name__}: {error}")
    else:
        report.put("no error")


def test_a_disk_that_is_full_raises_and_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    forked = multiprocessing.get_context("fork")
    report = forked.SimpleQueue()
    process = forked.Process(target=run_out_of_disk, args=(tmp_path, report))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert "Error: " in report.get()  # torch's own words, which depend on the byte that did not fit
    assert what_is_missing(tmp_path / "checkpoint-4") is not None
    assert emo_hf.last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    again = tiny.trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=6)
    again.train(resume_from_checkpoint=emo_hf.last_whole_checkpoint(tmp_path))
    assert unwrap(again.optimizer).emotion.observations == 6


def killed_while_saving(folder: Path, resume: str | None, method: str, changes: dict[str, Any]) -> None:
    """A run that dies at the save of step 4, when a method of the Trainer is about to write the next file."""
    trainer = tiny.trainer(folder, **changes)
    save = getattr(trainer, method)

    def die(*given: Any, **named: Any) -> None:
        if trainer.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        save(*given, **named)

    setattr(trainer, method, die)
    trainer.train(resume_from_checkpoint=resume)


EVALUATING = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": tiny.examples(4)}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("save_model", {}),
        ("_save_optimizer_and_scheduler", {}),
        ("_save_rng_state", {}),
        ("_save_optimizer_and_scheduler", EVALUATING),
        ("_save_optimizer_and_scheduler", {"save_strategy": "epoch", "data": tiny.examples(8), "num_train_epochs": 3}),
    ],
    ids=["before the weights", "after the weights", "after the optimizer", "after an evaluation", "after an epoch"],
)
def test_a_checkpoint_of_which_half_is_of_another_run_is_not_taken_for_a_whole_one(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    tiny.trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=4).train()
    other = {"learning_rate": 5e-3} | changes
    strategy = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    forked = multiprocessing.get_context("fork")
    resume = str(tmp_path / "checkpoint-2")
    process = forked.Process(target=killed_while_saving, args=(tmp_path, resume, method, strategy | other))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    files = sorted(path.name for path in (tmp_path / "checkpoint-4").iterdir())
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth"} <= set(files), (
        "all that a whole one has, but for one"
    )
    assert what_is_missing(tmp_path / "checkpoint-4") == "trainer_state.json is missing"
    assert emo_hf.last_whole_checkpoint(tmp_path) == resume
    again = tiny.trainer(tmp_path, **(strategy | other))
    again.train(resume_from_checkpoint=emo_hf.last_whole_checkpoint(tmp_path))
    assert what_is_missing(tmp_path / "checkpoint-4") is None


def test_a_first_checkpoint_that_does_not_fit_is_told_by_what_is_trained(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (small_disk / "ballast").write_bytes(b"0" * 395_000)
    with pytest.raises((OSError, RuntimeError, SafetensorError)):
        tiny.trainer(small_disk, save_strategy="steps", save_steps=2, max_steps=6).train()
    assert sum("The disk is full" in line for line in caplog.messages) == 1
    assert emo_hf.last_whole_checkpoint(small_disk) is None


def test_a_run_that_does_not_save_at_a_step_leaves_the_checkpoint_of_that_step_alone(copy: Path) -> None:
    tiny.trainer(copy, max_steps=6).train()
    tiny.trainer(copy, max_steps=6, save_strategy="steps", save_steps=3).train()
    assert [what_is_missing(copy / f"checkpoint-{step}") for step in (2, 3, 4, 6)] == [None] * 4


@pytest.mark.parametrize("optim", ["emonavi", "adamw_torch"])
def test_a_script_that_names_a_torn_checkpoint_is_told_what_is_wrong_with_it(
    optim: str, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = copy / "checkpoint-6" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    tiny.trainer(copy, optim=optim, resume_from_checkpoint=str(copy / "checkpoint-6"))
    tiny.trainer(copy, optim=optim, resume_from_checkpoint=str(copy / "checkpoint-4"))
    said = [record.getMessage() for record in caplog.records if record.name == "emo_hf.trainer.checkpoints"]
    assert len(said) == (optim == "emonavi")
    assert all("optimizer.pt" in line and "last_whole_checkpoint" in line for line in said)


def test_the_recipe_says_what_is_wrong_with_a_torn_checkpoint_that_it_was_given(copy: Path) -> None:
    torn = copy / "checkpoint-6" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoint-6' was not saved to its end: model.safetensors .* bytes"):
        checkpoint_to_resume(str(copy), str(copy / "checkpoint-6"), overwrite=False)
    assert checkpoint_to_resume(str(copy), str(copy), overwrite=False) == str(copy / "checkpoint-4")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds one checkpoint and a part of the next."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("optim", ["emonavi", "emofact"])
def test_a_real_disk_that_is_full_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    optim: str, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"optim": optim, "save_strategy": "steps", "save_steps": 2, "max_steps": 20}
    whole = tiny.trainer(tmp_path / "whole", **changes)
    whole.train()
    with pytest.raises((OSError, RuntimeError, SafetensorError)):  # torch's own words: "basic_ios::clear", say
        tiny.trainer(small_disk, **changes).train()
    found = emo_hf.last_whole_checkpoint(small_disk)
    assert found is not None
    torn = small_disk / f"checkpoint-{int(Path(found).name.partition('-')[2]) + 2}"
    assert what_is_missing(torn) is not None
    (said,) = (line for line in caplog.messages if "The disk is full" in line)
    assert str(torn) in said
    assert "last_whole_checkpoint" in said
    before = Path(shutil.copytree(found, tmp_path / "before"))
    for name in ("model.safetensors", "optimizer.pt"):
        assert (before / name).read_bytes() == (tmp_path / "whole" / Path(found).name / name).read_bytes()
    shutil.rmtree(torn)
    for folder in small_disk.glob("checkpoint-*"):  # somebody makes room
        if str(folder) != found:
            shutil.rmtree(folder)
    again = tiny.trainer(small_disk, **changes, save_total_limit=1)
    again.train(resume_from_checkpoint=found)
    assert unwrap(again.optimizer).emotion == unwrap(whole.optimizer).emotion
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_as_one_that_was_let_alone() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/kill_resume.py", "--kills", "5", "--steps", "20", "--longest_life", "0.5"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run ended the same" in done.stdout
