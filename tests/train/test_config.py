"""The YAML file and the command line: what is read, which wins, and what is said when something is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import emo_hf
from emo_hf.train.config import Job, read_job
from emo_hf.train.errors import RecipeError
from emo_hf.train.train import main

ENOUGH = {"model_name_or_path": "some/model", "dataset": "some/dataset", "output_dir": "out", "use_cpu": True}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    emo_hf.register()
    yield
    emo_hf.unregister()


def job_of(folder: Path, text: str, *arguments: str) -> Job:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(ENOUGH) + text, encoding="utf-8")
    return read_job([str(file), *arguments])


@pytest.mark.parametrize(
    ("text", "part", "option", "value"),
    [
        ("learning_rate: 1e-4", "training", "learning_rate", 1e-4),  # a string to YAML
        ("weight_decay: 0", "training", "weight_decay", 0.0),
        ("eval_strategy: no\nsave_strategy: no", "training", "save_strategy", "no"),  # false to YAML
        ("bf16: false", "training", "bf16", False),
        ("use_lora: False", "lora", "use_lora", False),
        ("use_dora: yes", "lora", "use_dora", True),
        ("lora_target_modules: [query, value]", "lora", "lora_target_modules", ["query", "value"]),
        ("text_columns: question", "data", "text_columns", ["question"]),
        ("max_train_samples: 7", "data", "max_train_samples", 7),
        ("max_train_samples: null", "data", "max_train_samples", None),
        ("max_length:", "data", "max_length", 256),
        ("report_to: none", "training", "report_to", []),
        ("report_to: [tensorboard]", "training", "report_to", ["tensorboard"]),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "training", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("optim: emolynx", "training", "optim", "emolynx"),
        ("optim_args: use_shadow=true,self_stop=stop", "training", "optim_args", "use_shadow=true,self_stop=stop"),
        (
            "optim_args: {use_shadow: true, lora_b_lr_ratio: 16}",
            "training",
            "optim_args",
            "use_shadow=true,lora_b_lr_ratio=16",
        ),
        (
            "optim: emoclan\noptim_args: {lynx_betas: [0.8, 0.95], decoupled_weight_decay: true}",
            "training",
            "optim_args",
            "lynx_betas=0.8/0.95,decoupled_weight_decay=true",
        ),
        ("resume_from_checkpoint: true", "training", "resume_from_checkpoint", "true"),
    ],
)
def test_a_yaml_value_is_read_as_it_is_meant(tmp_path: Path, text: str, part: str, option: str, value: Any) -> None:
    assert getattr(getattr(job_of(tmp_path, text), part), option) == value


def test_without_further_options_the_optimizer_is_emonavi_and_tensorboard_is_fed(tmp_path: Path) -> None:
    job = job_of(tmp_path, "")
    assert job.training.optim == "emonavi"
    assert job.training.report_to == ["tensorboard"]
    assert job.lora.use_lora


@pytest.mark.parametrize(
    ("text", "lr"),
    [
        ("optim: emosens", 1.0),
        ("optim: emosens\nlearning_rate: 1e-3", 1e-3),
        ("optim: emovoid\nlearning_rate: 0.1", 0.1),
        ("optim: emonavi\noptim_args: version=v3.6", 1e-3),
        ("optim: adamw_torch", 1e-3),
    ],
)
def test_a_rate_that_nobody_gave_is_1_where_it_is_a_scale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, lr: float
) -> None:
    assert job_of(tmp_path, text).training.learning_rate == lr
    said = [record.message for record in caplog.records if "learning_rate" in record.message]
    assert len(said) == (1 if lr == 1.0 else 0)
    assert all("emosens: learning_rate 1, since none was given" in line for line in said)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    text = "learning_rate: 1e-4\nlora_target_modules: [query]\nuse_dora: true\nreport_to: [tensorboard]\nseed: 3"
    job = job_of(
        tmp_path, text,
        "--learning_rate", "2e-4", "--lora_target_modules", "key", "value", "--use_dora", "false", "--report_to=none",
    )  # fmt: skip
    assert job.training.learning_rate == 2e-4
    assert job.lora.lora_target_modules == ["key", "value"]
    assert not job.lora.use_dora
    assert job.training.report_to == []
    assert job.training.seed == 3


def test_no_file_is_needed() -> None:
    job = read_job([f"--{name}={value}" for name, value in ENOUGH.items()])
    assert job.model.model_name_or_path == "some/model"


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("learning_rat: 1e-4", [], "job.yaml: unknown option 'learning_rat': did you mean 'learning_rate'?"),
        ("", ["--lora_rr", "4"], "unknown option 'lora_rr': did you mean 'lora_r'?"),
        ("", ["--lora-rr=4"], "unknown option 'lora_rr': did you mean 'lora_r'?"),
        ("", ["more"], "unexpected 'more': the YAML file comes first"),
        ("learning_rate: fast", [], "job.yaml: learning_rate: a number is wanted, got 'fast'"),
        ("max_length: 12.5", [], "max_length: a whole number is wanted, got '12.5'"),
        ("use_lora: maybe", [], "use_lora: Truthy value expected: got maybe"),
        ("optim: emonavy", [], "optim: invalid choice: 'emonavy'"),
        ("task: regression", [], "task: invalid choice: 'regression'"),
        ("max_length: [1, 2]", [], "max_length: one value is wanted, got the list [1, 2]"),
        ("max_length: {a: 1}", [], "max_length: one value is wanted, got the mapping {'a': 1}"),
        ("lora_target_modules: []", [], "lora_target_modules: a list of plain values is wanted, got []"),
        ("- a list", [], "job.yaml: "),
        ("optim_args: self_stop=sometimes", [], "optim_args: option self_stop='sometimes' is not acceptable"),
        ("optim_args: use_shadows=true", [], "did you mean use_shadow?"),
        ("optim_args: use_shadow", [], "optim_args: 'use_shadow' is not of the form key=value"),
        ("optim_args: version=v3.9", [], "optim_args: version of EmoNavi must be one of v3.1, v3.0, v3.6, got 'v3.9'"),
        ("optim_args: stopcoef=0.1", [], "optim_args: EmoNavi v3.1 has no option stopcoef"),
        ("optim: emoclan\noptim_args: emo_law=v3.1", [], "optim_args: emo_law='v3.1': the rule of EmoClan v3.0"),
        ("lora_r: 0", [], "lora_r must be above 0, got 0"),
        ("lora_dropout: 1", [], "lora_dropout must be at least 0 and below 1, got 1.0"),
        ("validation_fraction: 1", [], "validation_fraction must be at least 0 and below 1, got 1.0"),
        ("text_columns: [a, b, c]", [], "text_columns must be one column, or two for pairs"),
        ("train_file: a.csv", [], "dataset and train_file/validation_file exclude each other"),
        ("is_decoder: true", [], "is_decoder must be false unless task is causal-lm"),
        ("load_best_model_at_end: true\neval_strategy: epoch", [], "load_best_model_at_end"),
        ("a: {b", [], "job.yaml: is not valid YAML"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], said: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(ENOUGH) + text, encoding="utf-8")
    assert main([str(file), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("emo-hf train: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n- b", "must hold a mapping"),
        ("just words", "must hold a mapping"),
        ("1: 2", "must hold a mapping"),
        ("", "model_name_or_path is missing"),
        ("model_name_or_path: m", "there is no data"),
        ("model_name_or_path: m\ndataset: d", "output_dir is missing"),
        ("help: true", "unknown option 'help'"),
    ],
)
def test_a_file_of_the_wrong_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(content, encoding="utf-8")
    assert main([str(file)]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.yaml"]) == 2
    assert "nowhere.yaml: there is no such file" in capsys.readouterr().err


def test_yaml_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm = tmp_path / "harm"
    file = tmp_path / "job.yaml"
    file.write_text(f"seed: !!python/object/apply:os.mkdir ['{harm}']", encoding="utf-8")
    assert main([str(file)]) == 2
    assert "is not valid YAML" in capsys.readouterr().err
    assert not harm.exists()


def test_help_lists_every_option_and_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--lora_r", "--dataset", "--learning_rate", "CONFIG.yaml", *emo_hf.FAMILY))
    assert "The initial learning rate for the optimizer. (default: 0.001)" in " ".join(said.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("emotion: settle", "emotion is for optimizers that have none; emonavi takes optim_args emo_law=settle"),
        ("optim: adamw_torch\nemotion: setle", "emotion: there is no law 'setle' to attach: choose one of v3.0, "),
        ("optim: adamw_torch\nemotion: settle\nemotion_args: {speed: 1}", "the law settle has no option speed"),
        (
            "optim: adamw_torch\nemotion: settle\nemotion_args: {self_stop: halt}",
            "self_stop='halt' is not acceptable: it takes one of off, log, save, stop",
        ),
        ("optim: adamw_torch\nemotion_args: {self_stop: stop}", "emotion_args needs emotion beside it"),
    ],
)
def test_an_emotion_that_cannot_be_attached_is_refused_before_anything_is_loaded(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        job_of(tmp_path, text)


def test_an_emotion_that_the_file_names_can_be_taken_back(tmp_path: Path) -> None:
    text = "optim: adamw_torch\nemotion: settle\nemotion_args: {self_stop: off, horizon: false}"
    assert job_of(tmp_path, text).emotion.emotion == "settle"
    assert job_of(tmp_path, text, "--emotion=", "--emotion_args=").emotion.emotion is None
