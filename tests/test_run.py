"""`emo-hf run` behaves as Python itself would, with the names registered; alone and below launchers."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import pytest
import torch

from emo_hf.laws import law_names
from emo_hf.run import main, read_job
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a script, or -m MODULE"),
        (["missing.py"], "there is no script 'missing.py' (to run a module: emo-hf run -m MODULE)"),
        (["folder"], "'folder' is a folder without __main__.py: name a script in it"),
        (["noise.bin"], "'noise.bin' is not Python, or has a mistake in it: source code string cannot contain null"),
        (["wrong.py"], "'wrong.py' is not Python, or has a mistake in it: invalid syntax (wrong.py, line 2)"),
        (["-m", "no_such_module", "--flag"], "there is no module 'no_such_module' that can be run"),
        (["-m", "json.nothing"], "there is no module 'json.nothing' that can be run"),
        (["-m", "no_such_package.module"], "there is no module 'no_such_package.module' that can be run (No module"),
        (["-m", "email"], "there is no module 'email' that can be run"),
        (["-m", ".x"], "there is no module '.x' that can be run"),
        (["--average_weights=often", "wrong.py"], "argument --average_weights: invalid choice: 'often'"),
        (["--emotion_arg", "x", "wrong.py"], "unrecognized arguments: --emotion_arg"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "noise.bin").write_bytes(b"\x00\x01")
    (tmp_path / "wrong.py").write_text("import sys\nthis is not\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert sys.path == before


def test_a_folder_an_archive_and_compiled_code_can_be_run_as_below_python(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text("import sys; print(__name__, sys.argv[1:])")
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    py_compile.compile(str(tmp_path / "app" / "__main__.py"), cfile=str(tmp_path / "app.pyc"))
    for target in ("app", "app.pyz", "app.pyc"):
        assert read_job([str(tmp_path / target), "--help"]).argv == [str(tmp_path / target), "--help"]
    done = run("-m", "emo_hf.run", "app.pyz", "--help", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "__main__ ['--help']\n"), done.stderr


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


def test_an_unmodified_trainer_script_keeps_an_average_of_the_weights_of_its_own_optimizer(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN.replace("{line['emo/observations']}", "{'emo/observations' in line}"))
    done = run("-m", "emo_hf", "run", "--average_weights", *ATTACHED, "--save_strategy", "steps", "--save_steps", "5",
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without a loss" not in done.stderr
    state = torch.load(tmp_path / "out" / "checkpoint-5" / "optimizer.pt", weights_only=True)["state"]
    assert state
    assert all(of_param["emo_average"].shape == of_param["exp_avg"].shape for of_param in state.values())


SEEN = """
import os, sys, transformers.training_args as t
print([member.value for member in t.OptimizerNames][:2], os.environ["EMO_HF_RUN"], sys.argv)
"""


@pytest.mark.parametrize(
    ("options", "registered"),
    [
        ([], {}),
        (["--emotion=v3.0"], {"emotion": "v3.0"}),
        (["--emotion", "settle", "--emotion_args", "guard=true, self_stop=off"],
         {"emotion": "settle", "guard": "true", "self_stop": "off"}),
        (["--average_weights"], {"average_weights": True}),
        (["--emotion_args=sync=local", "--average_weights=rounded", "--emotion", "v3.1"],
         {"emotion": "v3.1", "sync": "local", "average_weights": "rounded"}),
    ],
)  # fmt: skip
def test_what_is_registered_is_what_the_options_say(
    options: list[str], registered: dict[str, Any], tmp_path: Path
) -> None:
    """What becomes of it is what `register` does: a package that loads at once shows that it arrives."""
    (tmp_path / "train.py").write_text(SEEN)
    light = str(light_transformers(tmp_path))
    done = run("-m", "emo_hf.run", *options, "-m", "train", "--optim", "adamw_torch", cwd=tmp_path,
               PYTHONPATH=os.pathsep.join([light, *(path for path in sys.path if path)]))  # fmt: skip
    assert done.returncode == 0, done.stderr
    names, _, rest = done.stdout.partition(" {")
    said, length = json.JSONDecoder().raw_decode("{" + rest)
    assert names == "['adamw_torch', 'emonavi']"
    assert said == registered
    assert rest[length:] == f"['{tmp_path / 'train.py'}', '--optim', 'adamw_torch']\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--emotion", "v9"], f"--emotion takes one of {', '.join(law_names())}, got 'v9'"),
        (["--emotion="], f"--emotion takes one of {', '.join(law_names())}, got ''"),
        (["--emotion", "settle", "--emotion_args", "nope=1"], "the law settle has no option nope; its options: "),
        (
            ["--emotion", "settle", "--emotion_args", "guard=maybe"],
            "'maybe' is not acceptable: it takes true or false",
        ),
        (["--emotion", "settle", "--emotion_args=guard"], "takes key=value,key=value, got 'guard'"),
        (["--emotion_args", "guard=true"], "comes with --emotion"),
    ],
)
def test_laws_and_options_that_there_are_not_are_refused_before_the_script_begins(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given, __file__]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("emo-hf run: ")
    assert said in found.err
    assert not found.out


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
