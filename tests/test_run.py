"""`emo-hf run` behaves as Python itself would, with the names registered; alone, below launchers, and in children."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import pytest
import torch

from emo_hf.laws import law_names
from emo_hf.run import main, read_job
from emo_hf.startup.sitecustomize import FOLDER
from tests.light_transformers import light_transformers
from tests.train.tiny import save_gpt2


def run(*command: str, cwd: Path, first: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process; `first` is put first on its path."""
    path = os.pathsep.join([*([str(first)] if first else []), *(path for path in sys.path if path)])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EMO_HF")}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


REPORT = """
import json, os, sys
def helper(): pass
print(json.dumps({
    "name": __name__, "file": os.path.realpath(__file__), "argv": sys.argv, "path0": sys.path[0],
    "main": sys.modules["__main__"].__dict__.get("helper") is helper,
}))
"""


@pytest.mark.parametrize("how", [["package/report.py"], ["-m", "package.report"]], ids=["script", "module"])
def test_a_script_or_module_sees_what_python_would_have_shown_it(how: list[str], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "report.py").write_text(REPORT)
    ours, python = (run(*before, *how, "--flag", "a b", cwd=tmp_path) for before in (["-m", "emo_hf.run"], []))
    assert ours.returncode == 0, ours.stderr
    assert json.loads(ours.stdout) == json.loads(python.stdout)
    assert json.loads(python.stdout)["main"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a script, or -m MODULE"),
        (["missing.py"], "there is no script 'missing.py' (to run a module: emo-hf run -m MODULE)"),
        (["folder"], "'folder' is a folder without __main__.py: name a script in it"),
        (["-m", "no_such_module", "--flag"], "there is no module 'no_such_module' that can be run"),
        (["-m", "no_such_package.module"], "there is no module 'no_such_package.module' that can be run"),
        (["-m", ".x"], "there is no module '.x' that can be run"),
        (["--average_weights=often", "x.py"], "argument --average_weights: invalid choice: 'often'"),
        (["--emotion_arg", "x", "x.py"], "unrecognized arguments: --emotion_arg"),
        (["--emotion", "v9", "x.py"], f"--emotion takes one of {', '.join(law_names())}, got 'v9'"),
        (["--emotion", "settle", "--emotion_args", "nope=1", "x.py"], "the law settle has no option nope; its opti"),
        (["--emotion", "settle", "--emotion_args", "guard=maybe", "x.py"], "'maybe' is not acceptable: it takes true"),
        (["--emotion", "settle", "--emotion_args=guard", "x.py"], "takes key=value,key=value, got 'guard'"),
        (["--emotion_args", "guard=true", "x.py"], "comes with --emotion"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_sentence_before_anything_begins(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert not found.out
    assert sys.path == before


def test_a_folder_an_archive_and_compiled_code_can_be_run_and_the_exit_code_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text("import sys; print(__name__, sys.argv[1:]); raise SystemExit(7)")
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    py_compile.compile(str(tmp_path / "app" / "__main__.py"), cfile=str(tmp_path / "app.pyc"))
    for target in ("app", "app.pyz", "app.pyc"):
        assert read_job([str(tmp_path / target), "--help"]).argv == [str(tmp_path / target), "--help"]
    done = run("-m", "emo_hf.run", "app.pyz", "--help", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "__main__ ['--help']\n"), done.stderr
    (tmp_path / "wrong.py").write_text("1 / 0 +\n")
    done = run("-m", "emo_hf.run", "wrong.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr


SEEN = """
import os, sys, transformers.training_args as t
print([member.value for member in t.OptimizerNames][:2], os.environ["EMO_HF_RUN"], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("options", "registered"),
    [
        ([], {}),
        (["--average_weights"], {"average_weights": True}),
        (["--emotion_args=sync=local, self_stop=off", "--average_weights=rounded", "--emotion", "v3.1"],
         {"emotion": "v3.1", "sync": "local", "self_stop": "off", "average_weights": "rounded"}),
    ],
)  # fmt: skip
def test_what_is_registered_is_what_the_options_say(
    options: list[str], registered: dict[str, Any], tmp_path: Path
) -> None:
    """What becomes of it is what `register` does: a package that loads at once shows that it arrives."""
    (tmp_path / "train.py").write_text(SEEN)
    light = light_transformers(tmp_path)
    done = run("-m", "emo_hf.run", *options, "-m", "train", "--optim", "adamw_torch", cwd=tmp_path, first=light)
    assert done.returncode == 0, done.stderr
    names, _, rest = done.stdout.partition(" {")
    said, length = json.JSONDecoder().raw_decode("{" + rest)
    assert names == "['adamw_torch', 'emonavi']"
    assert said == registered
    assert rest[length:] == "['--optim', 'adamw_torch']\n"


# Trainings

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
    print(f"rank {args.process_index} of {args.world_size}: observations {line.get('emo/observations')}")
    trainer.accelerator.end_training()
"""
TRAINING = ["train.py", "--output_dir", "out", "--logging_steps", "1", "--report_to", "none", "--use_cpu", "true",
            "--per_device_train_batch_size", "4", "--num_train_epochs", "1"]  # fmt: skip
SAVING = ["--optim", "adamw_torch", "--save_strategy", "steps", "--save_steps", "4"]


def test_an_unmodified_trainer_script_trains_below_torchrun_with_an_emotion_for_its_own_optimizer(
    tmp_path: Path,
) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    emotion = ["--emotion", "settle", "--emotion_args", "average_weights=true,self_stop=off"]
    done = run(*launcher, "-m", "emo_hf.run", *emotion, *TRAINING, *SAVING, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} of 2: observations 4" in done.stdout for rank in (0, 1))
    state = torch.load(tmp_path / "out" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert [group["emotion"]["law"] for group in state["param_groups"]] == ["settle", "settle"]
    assert all("emo_average" in of_param for of_param in state["state"].values())
    assert state["param_groups"][0]["emotion"]["observations"] == 4


def test_it_trains_with_an_emo_optimizer_and_an_average_below_accelerate_launch(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "config.yaml").write_text(
        # MULTI_CPU would need mpirun; MULTI_GPU starts ranks as torchrun does, and --use_cpu keeps them on the CPU.
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\n"
        "machine_rank: 0\nmixed_precision: 'no'\nuse_cpu: true\nmain_process_port: 0\n"
    )
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "config.yaml"]
    named = [*SAVING, "--optim", "emonavi"]
    done = run(*launcher, "-m", "emo_hf.run", "--average_weights", *TRAINING, *named, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} of 2: observations 4" in done.stdout for rank in (0, 1))
    assert "without a loss" not in done.stderr
    state = torch.load(tmp_path / "out" / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert state
    assert all("emo_average" in of_param for of_param in state.values())


# Children


def test_trl_sft_which_starts_its_script_by_accelerate_launch_trains_with_the_emotion(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "m")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "the cat is red"}\n' * 16)
    trl = shutil.which("trl", path=os.path.dirname(sys.executable)) or ""
    done = run(
        "-m", "emo_hf", "run", "--emotion", "v3.0", trl, "sft", "--model_name_or_path", "m", "--dataset_name", "data",
        "--optim", "adamw_torch", "--output_dir", "out", "--max_steps", "3", "--logging_steps", "1", "--report_to",
        "none", "--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false",
        "--per_device_train_batch_size", "2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    place = tmp_path / "out" / "checkpoint-3"
    lines = json.loads((place / "trainer_state.json").read_text())["log_history"]
    assert [line["emo/observations"] for line in lines if "loss" in line] == [1, 2, 3]
    state = torch.load(place / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["emotion"]["law"] == "v3.0"


CHILDREN = f"""
import subprocess, sys
seen = {SEEN!r}
for child in (["-c", seen], ["-c", "import sys; sys.modules['emo_hf'] = None" + seen],  # there is no such package
              ["-m", "emo_hf.run", "--emotion", "v3.1", "inner.py"]):
    print(subprocess.run([sys.executable, *child]).returncode, flush=True)
"""


def test_children_know_the_names_and_one_that_cannot_import_emo_hf_goes_on_and_says_so_in_one_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "start.py").write_text(CHILDREN)
    (tmp_path / "inner.py").write_text(SEEN)
    light = light_transformers(tmp_path)
    done = run("-m", "emo_hf", "run", "--emotion", "v3.0", "start.py", cwd=tmp_path, first=light)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['adamw_torch', 'emonavi'] {\"emotion\": \"v3.0\"} []", "0",
        "['adamw_torch'] {\"emotion\": \"v3.0\"} []", "0",
        "['adamw_torch', 'emonavi'] {\"emotion\": \"v3.1\"} []", "0",
    ]  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith("emo-hf run: the emo optimizers are not known in process ")


def test_another_sitecustomize_is_run_too_and_its_child_sees_the_path_it_would_have_seen(tmp_path: Path) -> None:
    customized = tmp_path / "other" / "sitecustomize.py"
    customized.parent.mkdir()
    code = (
        "import sys, sitecustomize; print(getattr(sys, 'customized', None), sitecustomize.__file__); print(sys.path)"
    )
    (tmp_path / "start.py").write_text(
        f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)"
    )
    customized.write_text("import sys\nsys.customized = __file__\n")
    done = run("-m", "emo_hf", "run", "start.py", cwd=tmp_path, first=customized.parent)
    assert done.returncode == 0, done.stderr
    first, path = done.stdout.splitlines()
    assert first == f"{customized} {customized}"
    assert path == run("-c", "import sys; print(sys.path)", cwd=tmp_path, first=customized.parent).stdout.strip()
    customized.write_text("1 / 0\n")
    (tmp_path / "start.py").write_text("import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1)'])")
    done = run("-m", "emo_hf", "run", "start.py", cwd=tmp_path, first=customized.parent)
    assert (done.returncode, done.stdout) == (0, "1\n"), "a broken one is as harmless as it was"
    assert "ZeroDivisionError" in done.stderr


def test_nothing_is_imported_before_the_trainer_is_and_without_the_switch_nothing_is_done() -> None:
    code = (
        "import sys; print([m for m in ('torch', 'transformers', 'emo_hf') if m in sys.modules], len(sys.meta_path))"
    )
    seen = []
    for switch in ({}, {"EMO_HF_RUN": "{}"}):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": FOLDER, **switch},
        )  # fmt: skip
        modules, _, finders = done.stdout.strip().rpartition(" ")
        seen.append((modules, int(finders)))
    assert [modules for modules, _ in seen] == ["[]", "[]"]
    assert seen[1][1] == seen[0][1] + 1
