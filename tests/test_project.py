"""The project's own promises: its commands, its style, its types, its documents."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_continuous_integration_calls_the_readmes_second_command_as_it_stands_there() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_ruff_finds_nothing_and_would_format_nothing() -> None:
    for arguments in (["check", "."], ["format", "--check", "."]):
        done = run("ruff", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_hold() -> None:
    done = run("mypy")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_and_every_metric_is_in_the_readmes_tables() -> None:
    import torch

    from emo_hf import EmoNavi
    from emo_hf.trainer.options import GROUP_OPTIONS, OPTIONS
    from emo_hf.trainer.param_groups import ROLES

    optimizer = EmoNavi([torch.nn.Parameter(torch.ones(1))])
    for name in [*(OPTIONS.keys() - GROUP_OPTIONS.keys()), *ROLES, *optimizer.metrics()]:
        assert f"`{name}`" in README, name


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_no_file_names_a_path_of_one_machine() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    for name in done.stdout.split():
        if name.endswith((".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".c")) and name != "tests/test_project.py":
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w./-])/(work|opt/dev|root|home/\w+)/", text), name
