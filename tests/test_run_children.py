"""What `emo-hf run` has registered is known in the Python processes that a script starts, and breaks none of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emo_hf.startup.sitecustomize import FOLDER
from tests.light_transformers import light_transformers
from tests.test_run import TRAIN, TRAINING

pytestmark = pytest.mark.long

OTHERS = f"""
import json, os, subprocess, sys
training = {TRAINING[1:]!r}
ranks = subprocess.Popen([
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py", *training,
    "--num_train_epochs", "1",
])
module = subprocess.run([
    sys.executable, "-m", "train", *training, "--optim", "adamw_torch", "--num_train_epochs", "1",
    "--save_strategy", "steps", "--save_steps", "5", "--output_dir", "attached",
])
assert ranks.wait() == module.returncode == 0, (ranks.returncode, module.returncode)
"""


def run(*command: str, cwd: Path, path: list[Path] | None = None) -> subprocess.CompletedProcess[str]:
    paths = [*(str(folder) for folder in path or []), *(entry for entry in sys.path if entry)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMO_HF")}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_ranks_below_torchrun_know_the_names_and_a_module_is_given_the_emotion(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "start.py").write_text(OTHERS)
    done = run("-m", "emo_hf", "run", "--emotion", "v3.0", "start.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} of 2: observations 4" in done.stdout for rank in (0, 1))
    assert "rank 0 of 1: observations 8" in done.stdout
    state = torch.load(tmp_path / "attached" / "checkpoint-5" / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["emotion"]["law"] == "v3.0"


def test_trl_sft_which_starts_its_script_by_accelerate_launch_trains_with_it(tmp_path: Path) -> None:
    words = ["<pad>", "<eos>", "<unk>", *"abcdef"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        tmp_path / "m"
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a b c d e f"}\n' * 16)
    trl = shutil.which("trl", path=os.path.dirname(sys.executable)) or ""
    done = run(
        "-m", "emo_hf", "run", trl, "sft", "--model_name_or_path", "m", "--dataset_name", "data", "--optim", "emonavi",
        "--output_dir", "out", "--max_steps", "3", "--logging_steps", "1", "--report_to", "none", "--use_cpu", "true",
        "--bf16", "false", "--gradient_checkpointing", "false", "--per_device_train_batch_size", "2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (state,) = (tmp_path / "out").glob("checkpoint-3/trainer_state.json")
    lines = [line for line in json.loads(state.read_text())["log_history"] if "loss" in line]
    assert [line["emo/observations"] for line in lines] == [1, 2, 3]


CHILD = """
import os, sys, transformers.training_args as t
print([member.value for member in t.OptimizerNames][:2], os.environ["EMO_HF_RUN"])
"""


def start_child(tmp_path: Path, code: str, path: list[Path] | None = None) -> subprocess.CompletedProcess[str]:
    script = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)"
    (tmp_path / "start.py").write_text(script)
    return run("-m", "emo_hf", "run", "start.py", cwd=tmp_path, path=path)


def test_a_child_that_cannot_import_emo_hf_goes_on_and_says_so_in_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['emo_hf'] = None\n" + CHILD  # what Python has where there is no such package
    done = start_child(tmp_path, code, path=[light_transformers(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['adamw_torch'] {}\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("emo-hf run: the emo optimizers are not known in process ")


def test_emo_hf_run_within_emo_hf_run_registers_once_and_with_its_own_emotion(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(CHILD)
    (tmp_path / "start.py").write_text(
        "import subprocess, sys\n"
        "sys.exit(subprocess.run([sys.executable, '-m', 'emo_hf.run', '--emotion', 'v3.1', 'inner.py']).returncode)\n"
    )
    path = [light_transformers(tmp_path)]
    done = run("-m", "emo_hf", "run", "--emotion", "v3.0", "start.py", cwd=tmp_path, path=path)
    assert (done.returncode, done.stdout) == (0, "['adamw_torch', 'emonavi'] {\"emotion\": \"v3.1\"}\n"), done.stderr[
        -3000:
    ]


def test_another_sitecustomize_is_run_too_and_its_child_sees_the_path_it_would_have_seen(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import builtins\nbuiltins.customized = __file__\n")
    code = "import sys, sitecustomize; print(customized == sitecustomize.__file__, customized); print(sys.path)"
    done = start_child(tmp_path, code, path=[other])
    assert done.returncode == 0, done.stderr
    first, path = done.stdout.splitlines()
    assert first == f"True {other / 'sitecustomize.py'}"
    assert path == run("-c", "import sys; print(sys.path)", cwd=tmp_path, path=[other]).stdout.strip()


def test_a_broken_sitecustomize_of_others_is_as_harmless_as_it_was(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("1 / 0\n")
    done = start_child(tmp_path, "print('on it goes')", path=[other])
    assert (done.returncode, done.stdout) == (0, "on it goes\n")
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
