"""YAML files and the command line: what is read, which wins, and what is said when something is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import emo_hf
from emo_hf.cli_errors import UserError
from emo_hf.train.config import Job, make_parser, read_job
from emo_hf.train.options import REMOVED
from emo_hf.train.rates import STARTING_RATES, rule_of
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
        ("use_lora: yes", "lora", "use_lora", True),
        ("lora_target_modules: [query, value]", "lora", "lora_target_modules", ["query", "value"]),
        ("text_columns: question", "data", "text_columns", ["question"]),
        ("max_train_samples: null", "data", "max_train_samples", None),
        ("max_length:", "data", "max_length", 256),
        ("report_to: none", "training", "report_to", []),
        ("report_to: [tensorboard]", "training", "report_to", ["tensorboard"]),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "training", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("optim_args: use_shadow=true,self_stop=stop", "training", "optim_args", "use_shadow=true,self_stop=stop"),
        ("optim_args: {use_shadow: true, lora_b_lr_ratio: 16}", "training", "optim_args",
         "use_shadow=true,lora_b_lr_ratio=16"),
        ("optim: emoclan\noptim_args: {lynx_betas: [0.8, 0.95], decoupled_weight_decay: true}", "training",
         "optim_args", "lynx_betas=0.8/0.95,decoupled_weight_decay=true"),
        ("resume_from_checkpoint: true", "training", "resume_from_checkpoint", "true"),
        ("eval_strategy: epoch\nsave_strategy: epoch", "training", "load_best_model_at_end", True),
        ("eval_strategy: steps\neval_steps: 20\nsave_steps: 40", "training", "load_best_model_at_end", True),
        ("eval_strategy: steps\neval_steps: 20\nsave_steps: 30", "training", "load_best_model_at_end", False),
        ("eval_strategy: epoch\nsave_strategy: epoch\nload_best_model_at_end: false", "training",
         "load_best_model_at_end", False),
    ],
)  # fmt: skip
def test_a_yaml_value_is_read_as_it_is_meant(tmp_path: Path, text: str, part: str, option: str, value: Any) -> None:
    assert getattr(getattr(job_of(tmp_path, text), part), option) == value


def test_without_further_options_the_optimizer_is_emonavi_and_tensorboard_is_fed(tmp_path: Path) -> None:
    job = job_of(tmp_path, "")
    assert job.training.optim == "emonavi"
    assert job.training.report_to == ["tensorboard"]
    assert job.lora.use_lora


@pytest.mark.parametrize(
    ("text", "kind", "rule"),
    [
        ("optim: emosens", "LoRA", "laws that make the rate"),
        ("optim: emofact", "LoRA", "EmoNavi's rule and its kin"),
        ("optim: emofact\noptim_args: {version: v3.6}", "LoRA", "sign rules"),
        ("optim: emolynx_8bit\nuse_lora: false", "full fine-tuning of a pretrained model", "sign rules"),
        ("optim: adamw_torch_fused\nmodel_name_or_path:\nmodel_type: bert\ntokenizer_name: bytes\nuse_lora: false",
         "from scratch", "AdamW and its kin"),
    ],
)  # fmt: skip
def test_a_rate_that_nobody_gave_is_that_of_the_kind_of_job_and_the_rule_and_is_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, kind: str, rule: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**ENOUGH, **yaml.safe_load(text)}), encoding="utf-8")
    rate, source = STARTING_RATES[kind, rule]
    assert read_job([str(file)]).training.learning_rate == rate
    (said,) = [record.message for record in caplog.records if "learning_rate" in record.message]
    assert said == f"learning_rate {rate:g}, since none was given: {kind}, {rule}; {source}."
    caplog.clear()
    assert read_job([str(file), "--learning_rate=0.02"]).training.learning_rate == 0.02
    assert not [record for record in caplog.records if "learning_rate" in record.message]


def test_every_member_of_the_family_has_a_starting_rate_and_an_unknown_optimizer_asks_for_one(tmp_path: Path) -> None:
    kinds = {kind for kind, _ in STARTING_RATES}
    for name in emo_hf.optim.family.family_names():
        assert all((kind, rule_of(name, None)) in STARTING_RATES for kind in kinds)
    with pytest.raises(UserError, match="learning_rate is missing: no rate to begin with is known for optim sgd"):
        job_of(tmp_path, "optim: sgd")


def test_the_command_line_wins_over_the_files_and_a_later_file_over_an_earlier_one(tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("seed: 5\nlearning_rate: 3e-4", encoding="utf-8")
    text = "learning_rate: 1e-4\nlora_target_modules: [query]\nreport_to: [tensorboard]\nseed: 3\nmax_length: 17"
    job = job_of(tmp_path, text, str(second), "--learning_rate", "2e-4", "--lora_target_modules", "key", "value",
                 "--report_to=none")  # fmt: skip
    assert job.training.learning_rate == 2e-4
    assert job.lora.lora_target_modules == ["key", "value"]
    assert job.training.report_to == []
    assert job.training.seed == 5
    assert job.data.max_length == 17


def test_no_file_is_needed() -> None:
    job = read_job([f"--{name}={value}" for name, value in ENOUGH.items()])
    assert job.model.model_name_or_path == "some/model"


WRONG = [
    ("learning_rat: 1e-4", "job.yaml: unknown option 'learning_rat': did you mean 'learning_rate'?"),
    ("help: true", "unknown option 'help'"),
    ("learning_rate: fast", "job.yaml: learning_rate: a number is wanted, got 'fast'"),
    ("max_length: 12.5", "max_length: a whole number is wanted, got '12.5'"),
    ("use_lora: maybe", "use_lora: Truthy value expected: got maybe"),
    ("optim: emonavy", "optim: invalid choice: 'emonavy'"),
    ("task: regression", "task: invalid choice: 'regression'"),
    ("task: flow-matching", "flow-matching is no task any more: scripts/examples/flow_matching.py shows it"),
    ("compare: adamw", "job.yaml: the option 'compare' is no more: train a second time with --beside FOLDER"),
    ("max_length: [1, 2]", "max_length: one value is wanted, got the list [1, 2]"),
    ("max_length: {a: 1}", "max_length: one value is wanted, got the mapping {'a': 1}"),
    ("lora_target_modules: []", "lora_target_modules: a list of plain values is wanted, got []"),
    ("optim_args: self_stop=sometimes", "optim_args: option self_stop='sometimes' is not acceptable"),
    ("optim_args: use_shadows=true", "did you mean use_shadow?"),
    ("optim_args: use_shadow", "optim_args: 'use_shadow' is not of the form key=value"),
    ("optim_args: stopcoef=0.1", "optim_args: EmoNavi v3.1 has no option stopcoef"),
    ("lora_r: 0", "lora_r must be a whole number of at least 1, got 0"),
    ("lora_dropout: 1", "lora_dropout must be at least 0 and below 1, got 1.0"),
    ("learning_rate: -1", "learning_rate must be a finite number of at least 0, got -1.0"),
    ("learning_rate: .nan", "learning_rate must be a finite number of at least 0, got nan"),
    ("learning_rate: .inf", "learning_rate must be a finite number of at least 0, got inf"),
    ("per_device_train_batch_size: 0", "per_device_train_batch_size must be a whole number of at least 1, got 0"),
    ("max_steps: -5", "max_steps must be at least 1, or -1 for num_train_epochs, got -5"),
    ("num_train_epochs: 0", "num_train_epochs must be a finite number above 0, got 0.0"),
    ("seed: 4294967296", "seed must be at least 0 and below 2**32, got 4294967296"),
    ("adam_beta1: 2", "adam_beta1 must be at least 0 and below 1, got 2.0"),
    ("logging_steps: -3", "logging_steps must be a finite number above 0, got -3.0"),
    ("text_columns: [a, b, c]", "text_columns must be one or two columns, got ['a', 'b', 'c']"),
    ("train_file: a.csv", "dataset and train_file/validation_file exclude each other"),
    ("is_decoder: true", "is_decoder must be false unless task is causal-lm"),
    ("load_best_model_at_end: true\neval_strategy: epoch", "load_best_model_at_end"),
    ("emotion: settle", "emotion, emotion_args and head_lr_ratio are for others: emonavi has them in optim_args"),
    ("head_lr_ratio: 3", "are for others: emonavi has them in optim_args"),
    ("optim: adamw_torch\nemotion: setle", "emotion_args: emo_law must be one of v3.0, v3.1, "),
    ("optim: adamw_torch\nemotion: settle\nemotion_args: {speed: 1}", "the law settle has no option speed"),
    ("optim: adamw_torch\nemotion: settle\nemotion_args: {self_stop: halt}", "='halt' is not acceptable"),
    ("optim: adamw_torch\nemotion_args: {self_stop: stop}", "EmoCallback was given self_stop but no emotion"),
    ("optim: adamw_torch\nemotion: settle\nemotion_args: x", "emotion_args: 'x' cannot be read"),
    ("a: {b", "job.yaml: is not valid YAML"),
    ("a: " + "[" * 3000, "job.yaml: is nested too deeply"),
    ("seed: !!python/object/apply:os.mkdir ['harm']", "is not valid YAML"),
    ("x: \0", "is not valid YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text[:40].strip() for text, _ in WRONG])
def test_what_cannot_be_used_is_said_in_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(ENOUGH) + text, encoding="utf-8")
    assert main([str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("emo-hf train: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n- b", "must hold a mapping"),
        ("1: 2", "must hold a mapping"),
        ("", "output_dir is missing"),
        ("output_dir: o", "model_name_or_path is missing"),
        ("output_dir: o\nmodel_name_or_path: m", "there is no data"),
    ],
)
def test_a_file_of_the_wrong_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(content, encoding="utf-8")
    assert main([str(file)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["/"], "/: cannot be read"),
        (["--lora_rr", "4"], "unknown option 'lora_rr': did you mean 'lora_r'?"),
        (["--compare_learning_rate=1"], "the option 'compare_learning_rate' is no more"),
        (["--seed", "1", "more"], "unexpected 'more': YAML files come first"),
    ],
)
def test_a_wrong_command_line_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_help_shows_ours_first_in_groups_and_names_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    groups = re.findall(r"^([^\n ].*):$", said, flags=re.MULTILINE)
    assert groups[:2] == ["options", "task and model"]
    assert groups[-2:] == ["the Trainer's own", "All other options of transformers' TrainingArguments are taken too"]
    assert said.index("--lora_r ") < said.index("--learning_rate ") < said.index("All other options")
    assert "fsdp_config" in said
    assert "--max-length" not in said
    assert all(name in said for name in emo_hf.FAMILY)
    assert len(said.splitlines()) < 300
    known = {action.dest for action in make_parser()._actions}
    assert not known & REMOVED.keys()


def test_an_emotion_that_the_file_names_can_be_taken_back(tmp_path: Path) -> None:
    text = "optim: adamw_torch\nemotion: settle\nemotion_args: {self_stop: off}"
    assert job_of(tmp_path, text).emotion.emotion == "settle"
    assert job_of(tmp_path, text, "--emotion=", "--emotion_args=").emotion.emotion is None
