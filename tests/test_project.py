"""The project's own promises: its commands and names. Style and types are checked by `.ci/checks`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_continuous_integration_calls_the_readmes_second_command_as_it_stands_there() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    called = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    environment, and_then, tests = commands[1].rpartition(" && ")
    assert and_then
    assert tests.endswith("python -m pytest")
    assert (
        called.index(environment)
        < called.index(".ci/checks .venv-test/bin/python || failed=1")
        < called.index(commands[1])
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_no_file_names_a_path_of_one_machine() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    for name in done.stdout.split():
        if name.endswith((".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".c")) and name != "tests/test_project.py":
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w./-])/(work|opt/dev|root|home/\w+)/", text), name
