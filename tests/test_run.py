"""`emo-hf run` behaves as Python itself would, with the names registered; alone and below launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emo_hf.laws import law_names
from emo_hf.run import main
from tests.light_transformers import light_transformers

REPORT = """
import json, os, sys
def helper(): pass
print(json.dumps({
    "name": __name__, "file": __file__, "argv": sys.argv, "path0": sys.path[0],
    "main": sys.modules["__main__"].__dict__.get("helper") is helper,
}))
"""

TRAIN = """
import sys
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments

if __name__ == "__main__":
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32)
    data = [{"input_ids": [i % 64] * 4, "labels": i % 2} for i in range(32)]
    trainer = Trainer(BertForSequenceClassification(config), args, train_dataset=data)
    trainer.train()
    line = [line for line in trainer.state.log_history if "loss" in line][-1]
    print(f"rank {args.process_index} of {args.world_size}: observations {line['emo/observations']}")
    trainer.accelerator.end_training()
"""


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
    )  # fmt: skip


def test_a_script_sees_what_python_would_have_shown_it(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "report.py").write_text(REPORT)
    arguments = ["elsewhere/report.py", "--flag", "a b", "-x"]
    ours = run("-m", "emo_hf.run", *arguments, cwd=tmp_path)
    python = run(*arguments, cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    expected = json.loads(python.stdout)
    assert expected["main"] is True
    assert json.loads(ours.stdout) == expected | {"file": json.loads(ours.stdout)["file"]}
    assert os.path.samefile(tmp_path / json.loads(ours.stdout)["file"], folder / "report.py")


def test_a_module_sees_what_python_m_would_have_shown_it(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "report.py").write_text(REPORT)
    ours = run("-m", "emo_hf.run", "-m", "package.report", "--flag", cwd=tmp_path)
    python = run("-m", "package.report", "--flag", cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    assert json.loads(ours.stdout) == json.loads(python.stdout)


@pytest.mark.parametrize(("body", "code"), [("raise SystemExit(7)", 7), ("1 / 0", 1)])
def test_the_exit_code_is_the_scripts(body: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"import sys\n{body}\n")
    done = run("-m", "emo_hf.run", "script.py", cwd=tmp_path)
    assert done.returncode == code
    assert ("ZeroDivisionError" in done.stderr) == (body == "1 / 0")


def test_nothing_to_run_is_said_in_one_sentence(tmp_path: Path) -> None:
    done = run("-m", "emo_hf.run", "missing.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no script 'missing.py'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_arguments_the_usage_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: emo-hf run")


TRAINING = ["train.py", "--output_dir", "out", "--optim", "emonavi", "--logging_steps", "1", "--report_to", "none",
            "--use_cpu", "true", "--per_device_train_batch_size", "4", "--save_strategy", "no"]  # fmt: skip


def test_an_unmodified_trainer_script_trains_with_an_emo_optimizer(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    done = run("-m", "emo_hf", "run", *TRAINING, "--num_train_epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 1: observations 8" in done.stdout


ATTACHED = [*TRAINING, "--num_train_epochs", "1", "--optim", "adamw_torch"]


def test_an_unmodified_trainer_script_trains_with_an_emotion_for_its_own_optimizer(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    emotion = ["--emotion", "settle", "--emotion_args", "average_weights=true,self_stop=off"]
    done = run("-m", "emo_hf", "run", *emotion, *ATTACHED, "--save_strategy", "steps", "--save_steps", "5",
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 1: observations 8" in done.stdout
    state = torch.load(tmp_path / "out" / "checkpoint-5" / "optimizer.pt", weights_only=True)
    assert [group["emotion"]["law"] for group in state["param_groups"]] == ["settle", "settle"]
    assert all("emo_average" in of_param for of_param in state["state"].values())
    assert state["param_groups"][0]["emotion"]["observations"] == 5


SEEN = """
import os, sys, transformers.training_args as t
print([member.value for member in t.OptimizerNames][:2], os.environ["EMO_HF_RUN_EMOTION"], sys.argv[1:])
"""


def test_a_module_can_be_given_an_emotion(tmp_path: Path) -> None:
    """What becomes of it there is what becomes of a script's: a package that loads at once shows that it arrives."""
    (tmp_path / "train.py").write_text(SEEN)
    light = str(light_transformers(tmp_path))
    done = run("-m", "emo_hf.run", "--emotion=v3.0", "-m", "train", "--optim", "adamw_torch", cwd=tmp_path,
               PYTHONPATH=os.pathsep.join([light, *(path for path in sys.path if path)]))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['adamw_torch', 'emonavi'] v3.0 ['--optim', 'adamw_torch']\n"


@pytest.mark.parametrize(
    ("arguments", "got"),
    [(["--emotion", "v9", "train.py"], "v9"), (["--emotion"], ""), (["--emotion=", "train.py"], "")],
)
def test_a_law_that_there_is_not_is_refused_in_one_sentence(
    arguments: list[str], got: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err == f"emo-hf run: --emotion takes one of {', '.join(law_names())}, got {got!r}\n"
    assert not said.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--emotion", "settle", "--emotion_args", "nope=1"], "the law settle has no option nope; its options: start"),
        (
            ["--emotion", "settle", "--emotion_args", "guard=maybe"],
            "'maybe' is not acceptable: it takes true or false",
        ),
        (["--emotion", "settle", "--emotion_args=guard"], "takes key=value,key=value, got 'guard'"),
        (["--emotion_args", "guard=true"], "comes after --emotion"),
    ],
)
def test_options_of_a_law_that_there_are_not_are_refused_before_the_script_begins(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given, "train.py"]) == 2
    assert said in capsys.readouterr().err


def test_it_trains_below_torchrun(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = run(*launcher, "-m", "emo_hf.run", *TRAINING, "--num_train_epochs", "1", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} of 2: observations 4" in done.stdout for rank in (0, 1))


def test_it_trains_below_accelerate_launch(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "config.yaml").write_text(
        # MULTI_CPU would need mpirun; MULTI_GPU starts ranks as torchrun does, and --use_cpu keeps them on the CPU.
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\n"
        "machine_rank: 0\nmixed_precision: 'no'\nuse_cpu: true\nmain_process_port: 0\n"
    )
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "config.yaml"]
    done = run(*launcher, "-m", "emo_hf.run", *TRAINING, "--num_train_epochs", "1", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} of 2: observations 4" in done.stdout for rank in (0, 1))
