"""The command line's own words, and what every command says of a wrong call; each command has tests of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import emo_hf
from emo_hf.cli import COMMANDS, SHELLS, main
from emo_hf.cli_errors import UserError, one_sentence
from emo_hf.laws import law_names


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    yield
    emo_hf.unregister()


def test_alone_it_shows_what_people_do_first_and_its_help_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines() if line.startswith("  emo-hf ")] == ["run", "train", "plot"]
    assert "emo-hf --help" in said
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:] if line.startswith("  ")] == list(COMMANDS)
    for option in ("--version", "-V"):
        assert main([option]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"emo_hf {emo_hf.__version__}"
        assert {f"torch {torch.__version__}", f"transformers {transformers.__version__}"} <= set(lines)
    assert main(["trian"]) == main(["xyz"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "emo-hf: unknown command 'trian': did you mean 'train'?",
        f"emo-hf: unknown command 'xyz': there are {', '.join(COMMANDS)}",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_ends_in_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: emo-hf {command}")
    assert said.out.partition("\nexamples:\n")[2].count(f"  emo-hf {command} ") == 2
    assert not said.err


def test_a_package_that_is_missing_is_named_and_a_module_of_our_own_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("emo_hf.study")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["compare", "study.yaml", "--output_dir", "out"]) == 2
    said = 'emo-hf compare: yaml is needed and not installed: pip install "emo_hf[hf]"\n'
    assert capsys.readouterr().err == said
    monkeypatch.delitem(sys.modules, "emo_hf.plot.main", raising=False)
    monkeypatch.setitem(sys.modules, "emo_hf.plot.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"emo_hf\.plot\.figure"):
        main(["plot", "run"])


@pytest.mark.skipif(os.name != "posix", reason="needs a shell with pipes")
def test_a_reader_that_has_read_enough_is_no_error() -> None:
    code = "import sys\nfrom emo_hf.cli import main\nsys.exit(main(['plot', '--help']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (141, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--no_such_option", "1"], ["train", "nothing.yaml"], ["run"], ["run", "nothing.py"],
        ["compare"], ["compare", "nothing.yaml", "--output_dir", "out"], ["plot"], ["plot", "nothing"],
        ["doctor", "nothing"], ["doctor", "--what"], ["completion"], ["completion", "fishes"],
    ],
)  # fmt: skip
def test_what_a_user_does_wrong_is_told_on_stderr_with_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err
    assert not said.out
    assert "Traceback" not in said.err


def test_what_a_command_raises_becomes_one_sentence_and_an_exit_code_and_faults_of_the_program_pass_through(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @one_sentence("emo-hf x")
    def command(raised: Any = None) -> int:
        raise raised

    monkeypatch.setenv("RANK", "1")
    for error, code, said in (
        (UserError("two\n lines"), 2, "emo-hf x: two lines (rank 1)\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), 2, "emo-hf x: 'a.txt': No such file (rank 1)\n"),
        (OSError("no words of the system"), 2, "emo-hf x: no words of the system (rank 1)\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
    ):
        assert command(error) == code
        assert capsys.readouterr().err == said
    for error in (ValueError("a fault"), BrokenPipeError(), SystemExit("text")):
        with pytest.raises(type(error)):
            command(error)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion script for bash, as the command prints it."""
    file = tmp_path_factory.mktemp("completion") / "emo-hf.bash"
    with file.open("w") as out, contextlib.redirect_stdout(out):
        assert main(["completion", "bash"]) == 0
    return file


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["emo-hf", ""], set(COMMANDS)),
        (["emo-hf", "plot", "my"], {"my run", "my other run"}),
        (["emo-hf", "run", "--emotion", ""], set(law_names())),
        (["emo-hf", "run", "train.py", "--optim", "emoly"], {"emolynx", "emolynx_8bit"}),
        (["emo-hf", "train", "--optim", "emoly"], {"emolynx", "emolynx_8bit"}),
        (["emo-hf", "train", "--train_file", "my"], {"my run", "my other run"}),
        (["emo-hf", "compare", "--dry"], {"--dry-run"}),
        (["emo-hf", "completion", ""], set(SHELLS)),
    ],
)
def test_bash_completes_commands_options_values_and_files(
    words: list[str], offered: set[str], tmp_path: Path, script: Path
) -> None:
    for name in ("my run", "my other run"):
        (tmp_path / name).mkdir()
    ask = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '$(complete -p emo-hf | sed "s/.*-F //; s/ .*//"); printf "%s\\n" "${COMPREPLY[@]}"'
    )
    asking = ["bash", "-c", ask, "bash", str(script), *words]
    done = subprocess.run(asking, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert set(done.stdout.splitlines()) == offered, done.stderr


@pytest.mark.parametrize("shell", SHELLS[1:])
def test_every_shell_gets_a_script_with_all_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert all(option in said for option in ("learning_rate", "lora_r", "train_file", "dry-run", "average_weights"))
