"""Tab completion, asked of a real shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import emo_hf
from emo_hf.cli import COMMANDS
from emo_hf.completion import all_options, bash, main, zsh
from emo_hf.laws import law_names
from emo_hf.trainer.registry import is_registered


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "emo-hf.bash"
    file.write_text(bash(all_options()), encoding="utf-8")
    return file


def completed(script: Path, *words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last of these words."""
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _emo_hf; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", ask, "bash", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=cwd)
    return done.stdout.split("\n")[:-1]


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["emo-hf", ""], {*COMMANDS, "--help", "--version"}),
        (["emo-hf", "pl"], {"plot"}),
        (["emo-hf", "plot", "--f"], {"--follow"}),
        (["emo-hf", "doctor", "--e"], {"--emotion"}),
        (["emo-hf", "run", "--emotion", ""], set(law_names())),
        (["emo-hf", "run", "train.py", "--optim", "emoly"], {"emolynx", "emolynx_8bit"}),
        (["emo-hf", "train", "--optim", "=", "emoly"], {"emolynx", "emolynx_8bit"}),
        (["emo-hf", "train", "--optim", "="], None),
        (["emo-hf", "train", "--lora_r"], {"--lora_r"}),
        (["emo-hf", "train", "--task", "causal"], {"causal-lm"}),
        (["emo-hf", "compare", "--dry"], {"--dry-run"}),
        (["emo-hf", "completion", ""], {"bash", "zsh"}),
    ],
)
def test_bash_completes_commands_options_and_values(script: Path, words: list[str], offered: set[str] | None) -> None:
    found = set(completed(script, *words))
    if offered is None:
        assert set(emo_hf.FAMILY) <= found
    else:
        assert found == offered


@needs_bash
def test_bash_completes_files_where_no_words_are_known(script: Path, tmp_path: Path) -> None:
    for name in ("my run", "my other run"):
        (tmp_path / name).mkdir()
    assert completed(script, "emo-hf", "plot", "my", cwd=tmp_path) in (
        ["my run", "my other run"], ["my other run", "my run"],
    )  # fmt: skip
    assert completed(script, "emo-hf", "train", "--train_file", "my o", cwd=tmp_path) == ["my other run"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_its_script(tmp_path: Path) -> None:
    (tmp_path / "_emo-hf").write_text(zsh(all_options()), encoding="utf-8")
    load = f'autoload -U compinit; fpath=({tmp_path} $fpath); compinit -u -d "{tmp_path}/dump"; echo $_comps[emo-hf]'
    done = subprocess.run(["zsh", "-fc", load], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "_emo-hf\n"
    subprocess.run(["zsh", "-fn", str(tmp_path / "_emo-hf")], timeout=60, check=True)


def test_both_scripts_are_printed_and_nothing_stays_registered(capsys: pytest.CaptureFixture[str]) -> None:
    was_registered = is_registered()
    for shell, begins in (("bash", "# Tab completion"), ("zsh", "#compdef emo-hf")):
        assert main([shell]) == 0
        assert capsys.readouterr().out.startswith(begins)
    assert is_registered() == was_registered


def test_every_option_of_every_parser_is_known() -> None:
    from emo_hf.plot.main import parser as plot
    from emo_hf.study.main import parser as compare

    known = all_options()
    for name, parser in (("compare", compare()), ("plot", plot())):
        options = {option for action in parser._actions for option in action.option_strings if option != "-h"}
        assert options == {option for option in known[name] if option}
    assert {"--learning_rate", "--optim", "--lora_r", "--train_file", "--emotion"} <= known["train"].keys()
