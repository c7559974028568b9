"""`--compare`: the same job the usual way, for as many steps, and both side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

import emo_hf
from emo_hf.plot.figure import smoothed
from emo_hf.train.comparison import columns
from emo_hf.train.config import read_job
from emo_hf.train.second_job import second_job
from emo_hf.train.train import prepare
from tests.train.tiny import save_bert, topics_csv, train


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    emo_hf.register()
    yield
    emo_hf.unregister()


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": save_bert(tmp_path / "bert"), "train_file": topics_csv(tmp_path),
        "output_dir": tmp_path / "out", "eval_strategy": "steps", "eval_steps": 4, "validation_fraction": 0.25,
        "lr_scheduler_type": "constant", "optim_args": "head_lr_ratio=10", "num_train_epochs": 2,
    }  # fmt: skip


def arguments(job: dict[str, Any], **more: Any) -> list[str]:
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_length": 16}
    return [f"--{key}={value}" for key, value in (quiet | job | more).items()]


def written(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in written(folder, "trainer_state.json")["log_history"] if "loss" in line]


def test_adamw_trains_beside_for_as_many_steps_from_the_same_beginning(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(**job, compare="adamw") == 0
    first, second = written(out, "summary.json"), written(out / "adamw", "summary.json")
    assert second["optimizer"] == "adamw_torch_fused"
    assert second["steps"] == first["steps"] == 10
    ours, usual = lines(out), lines(out / "adamw")
    assert usual[0]["loss"] == ours[0]["loss"], "the same weights and the same first batch"
    assert usual[-1]["loss"] != ours[-1]["loss"]
    rates = [line["learning_rate"] for line in usual]
    assert max(rates) == pytest.approx(3e-3)
    assert rates[0] < rates[1] > rates[-1] < 0.2 * max(rates), "a linear schedule with a warm-up"
    said = capsys.readouterr().out
    table = [line.split("  ") for line in said[said.index("side by side") :].splitlines()]
    cells = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in table}
    assert cells["side by side"] == ["emonavi (law v3.1)", "adamw_torch_fused"]
    assert cells["steps"] == ["10", "10"]
    assert cells["schedule"] == ["constant", "linear, warm-up of 1 step"]
    assert cells["eval loss"] == [f"{first['eval_loss']:.4f}", f"{second['eval_loss']:.4f}"]
    assert {"accuracy", "wall time", "learning rate"} <= cells.keys()
    assert "Both have trained for 10 steps" in said
    with Image.open(out / "comparison.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_the_comparison_can_be_made_again(tmp_path: Path, job: dict[str, Any]) -> None:
    assert train(**job, compare="adamw") == 0
    before = written(tmp_path / "out" / "adamw", "summary.json")
    assert train(**job, compare="adamw", overwrite=True) == 0
    after = written(tmp_path / "out" / "adamw", "summary.json")
    assert before["eval_loss"] == after["eval_loss"]


def test_the_other_job_has_the_rates_of_the_roles_and_a_rate_of_its_own(job: dict[str, Any]) -> None:
    given = arguments(job, compare="adamw", compare_learning_rate=1e-4, learning_rate=3e-3)
    second = second_job(given, read_job(given), 50)
    trainer, _ = prepare(second)
    trainer.create_optimizer_and_scheduler(50)
    rates = {group["name"].removesuffix("_no_decay"): group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == pytest.approx({"lora_a": 1e-4, "lora_b": 1e-4, "head": 1e-3})
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert second.training.optim == "adamw_torch_fused"
    assert second.training.get_warmup_steps(50) == math.ceil(0.06 * 50)


def test_a_schedule_and_a_warm_up_of_the_job_are_kept(job: dict[str, Any]) -> None:
    given = arguments(job | {"lr_scheduler_type": "cosine"}, compare="emofact", warmup_steps=7)
    second = second_job(given, read_job(given), 50)
    assert second.training.lr_scheduler_type == "cosine"
    assert second.training.get_warmup_steps(50) == 7
    assert second.training.optim_args == "head_lr_ratio=10"
    assert second.training.output_dir.endswith("emofact")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compare": "adamv"}, "compare must be adamw or what optim takes (adamw_torch, "),
        ({"compare": "adamw_torch_fuse"}, "got 'adamw_torch_fuse'; did you mean adamw_torch_fused?"),
        ({"compare_learning_rate": 1e-3}, "compare_learning_rate needs compare beside it"),
        ({"compare": "adamw", "compare_learning_rate": 0}, "compare_learning_rate must be above 0, got 0.0"),
        ({"compare": "galore_adamw"}, "compare: galore_adamw cannot be used here: "),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(
    tmp_path: Path, job: dict[str, Any], options: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(**job, **options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_smoothed_values_have_no_bias_towards_the_beginning() -> None:
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([1.0, 0.0], 0.5) == pytest.approx([1.0, 1 / 3])


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert columns([("a", "bbb", "c"), ("aa", "b", "ccc")]) == "a   bbb  c\naa  b    ccc"
