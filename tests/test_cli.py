"""The command line's own words; each command has tests of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import transformers

import emo_hf
from emo_hf.cli import COMMANDS, main


def test_without_arguments_it_lists_every_command_on_stderr_and_exits_with_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert all(name in said.err for name in COMMANDS)


def test_help_is_not_an_error_and_stands_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr()
    assert all(name in said.out for name in COMMANDS)
    assert not said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_ends_in_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main([command, "--help"]) == 0
    finally:
        emo_hf.unregister()
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: emo-hf {command}")
    _, _, examples = said.out.partition("\nexamples:\n")
    assert examples.count(f"\n  emo-hf {command} ") == 2
    assert not said.err


def test_the_help_of_a_script_that_is_run_is_the_scripts_own(
    capsys: pytest.CaptureFixture[str], tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = os.path.join(tmp_path, "script.py")
    with open(script, "w", encoding="utf-8") as file:
        file.write("import sys; print(sys.argv[1:])")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert main(["run", script, "--help"]) == 0
    finally:
        emo_hf.unregister()
    assert capsys.readouterr().out == "['--help']\n"


def test_an_unknown_command_is_named_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "unknown command 'trian': did you mean 'train'?" in capsys.readouterr().err
    assert main(["xyz"]) == 2
    assert "unknown command 'xyz'\n" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_versions_are_one_a_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"emo_hf {emo_hf.__version__}"
    assert f"torch {torch.__version__}" in lines
    assert f"transformers {transformers.__version__}" in lines


def test_a_package_that_is_not_there_is_named_with_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "emo_hf.study.main", raising=False)
    monkeypatch.delitem(sys.modules, "emo_hf.study.schema", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["compare", "study.yaml"]) == 2
    assert capsys.readouterr().err == 'emo-hf compare needs yaml: pip install "emo_hf[hf]"\n'


@pytest.mark.skipif(os.name != "posix", reason="needs a shell with pipes")
def test_a_reader_that_has_read_enough_is_no_error() -> None:
    code = "import sys\nfrom emo_hf.cli import main\nsys.exit(main(['plot', '--help']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert not errors


def test_run_lists_every_optimizer_and_law(capsys: pytest.CaptureFixture[str]) -> None:
    from emo_hf import FAMILY
    from emo_hf.laws import LAWS

    assert main(["run", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"--optim {name}" in said for name in FAMILY)
    assert all(law in said for law in LAWS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--no_such_option", "1"], ["train", "nothing.yaml"], ["run"], ["run", "nothing.py"],
        ["compare"], ["compare", "nothing.yaml", "--output_dir", "out"], ["plot"], ["plot", "nothing"],
        ["doctor", "nothing"], ["doctor", "--what"], ["completion"], ["completion", "tcsh"],
    ],
)  # fmt: skip
def test_what_a_user_does_wrong_is_told_on_stderr_with_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(arguments) == 2
    finally:
        emo_hf.unregister()
    said = capsys.readouterr()
    assert said.err
    assert not said.out
    assert "Traceback" not in said.err
