"""Compiling the kernels once per machine, into a cache from which nothing is loaded that others may have put there."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emo_hf.optim.kernels import build

pytestmark = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler")

PROGRAM = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and a process that has not asked for kernels yet."""
    path = tmp_path / "cache"
    monkeypatch.setenv(build.CACHE_VARIABLE, str(path))
    monkeypatch.setenv(build.FLAGS_VARIABLE, "-O0")  # which is faster
    build.kernels.cache_clear()
    yield path
    build.kernels.cache_clear()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="emo_hf.optim.kernels")

    def messages() -> list[str]:
        said = [record.message for record in caplog.records]
        caplog.clear()
        return said

    return messages


def as_a_new_process_would() -> None:
    build.kernels.cache_clear()
    assert build.kernels() is not None


def compiler() -> tuple[str, ...]:
    found = build.find_compiler()
    assert found is not None
    return found


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_one_compilation_without_a_warning_serves_all_processes_and_its_user_alone_can_change_it(
    folder: Path, log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.FLAGS_VARIABLE, "-O0 -Wall -Wextra -Wconversion -pedantic -Werror")
    before = os.umask(0)
    try:
        as_a_new_process_would()
    finally:
        os.umask(before)
    (library,) = folder.iterdir()
    assert [path.stat().st_mode & 0o077 for path in (folder, library)] == [0, 0]
    as_a_new_process_would()
    assert [message[:16] for message in log()] == ["compiled kernels"]
    assert list(folder.iterdir()) == [library]


def test_processes_that_compile_at_once_do_not_disturb_each_other(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    with ThreadPoolExecutor(3) as processes:
        list(processes.map(lambda _: build.build(compiler(), folder / "kernels.so"), range(3)))
    assert list(folder.iterdir()) == [folder / "kernels.so"]


def yields_nothing(folder: Path) -> str:
    empty = folder / "empty.c"
    empty.write_text("int nothing;\n", encoding="utf-8")
    command = f'while [ "$1" != "-o" ]; do shift; done; exec {shlex.join(compiler())} -shared -fPIC {empty} -o "$2"'
    return script(folder / "odd-cc", command)


WITHOUT: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "no C compiler found": lambda _, patch: patch.setattr(build, "find_compiler", lambda: None),
    "could not compile kernels": lambda _, patch: patch.setenv(build.FLAGS_VARIABLE, "-nonsense"),
    "No closing quotation": lambda _, patch: patch.setenv(build.FLAGS_VARIABLE, "'"),
    "lacks what was compiled into it": lambda folder, patch: patch.setenv("CC", yields_nothing(folder)),
    "installed without its C sources": lambda folder, patch: patch.setattr(build, "SOURCES", folder / "sources"),
    "timed out after 0.1 seconds": lambda folder, patch: (
        patch.setattr(build, "TIMEOUT", 0.1),
        patch.setenv("CC", script(folder / "slow-cc", "exec sleep 600")),
    )[0],
}


@pytest.mark.parametrize("said", WITHOUT)
def test_without_a_working_compiler_there_are_no_kernels_and_one_line_of_log(
    said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    WITHOUT[said](tmp_path, monkeypatch)
    assert build.kernels() is None
    assert build.kernels() is None
    (line,) = log()
    assert said in line
    assert line.endswith("the optimizer steps in plain PyTorch, more slowly")
    assert not folder.exists() or list(folder.iterdir()) == []


def test_where_the_cache_is_full_or_cannot_be_made_there_is_another_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    full = f'case "$*" in *{folder}*) echo "No space left on device" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", script(tmp_path / "full-cc", f'{full}; exec {shlex.join(compiler())} "$@"'))
    as_a_new_process_would()
    compiled, why = log()
    assert compiled.startswith("compiled kernels")
    assert "No space left on device" in why
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    as_a_new_process_would()


def test_the_compiler_may_be_a_command_with_arguments_and_one_that_makes_no_sense_leaves_the_choice_to_us(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    chosen = build.find_compiler()
    for asked in ("no-such-compiler", "'", "   "):
        monkeypatch.setenv("CC", asked)
        assert build.find_compiler() == chosen
    wrapper = script(tmp_path / "a cache", f'echo "$@" >> {tmp_path}/seen; exec "$@"')
    monkeypatch.setenv("CC", f"'{wrapper}' {shlex.join(chosen or ())} -DANYTHING")
    as_a_new_process_would()
    assert " -DANYTHING -O3 " in (tmp_path / "seen").read_text()


# What may be loaded


@pytest.fixture
def trap(folder: Path, tmp_path: Path) -> Path:
    """A file that comes to be when a library is loaded which lies in the cache under a right name, mode and owner."""
    sprung = tmp_path / "sprung"
    program, library = tmp_path / "trap.c", tmp_path / "trap.so"
    program.write_text(PROGRAM % sprung)
    subprocess.run([*compiler(), "-shared", "-fPIC", str(program), "-o", str(library)], check=True)
    folder.mkdir(mode=0o700)
    library.chmod(0o700)
    shutil.copy(library, folder / f"kernels-{build.fingerprint(compiler())}.so")
    return sprung


def by_others(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 65534, 65534)


def a_link(path: Path) -> None:
    shutil.move(path, path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


SPOILT: dict[str, Callable[[Path], object]] = {
    "belongs to user 65534, not to": by_others,
    "may be changed by others (mode 720): chmod go-w would prevent it": lambda path: path.chmod(0o720),
    "may be changed by others (mode 702)": lambda path: path.chmod(0o702),
    "is a link": a_link,
    "file too short": lambda path: path.write_bytes(b""),
    "lacks what was compiled into it": lambda path: None,
}


@pytest.mark.parametrize("said", SPOILT)
def test_a_library_that_others_may_have_put_there_or_that_is_none_is_compiled_anew(
    said: str, folder: Path, trap: Path, log: Callable[[], list[str]]
) -> None:
    SPOILT[said](next(folder.iterdir()))
    as_a_new_process_would()
    assert trap.exists() is said.startswith("lacks")
    why, compiled = log()
    assert said in why
    assert why.endswith("it is not loaded, and the kernels are compiled anew")
    assert compiled.startswith("compiled kernels")
    as_a_new_process_would()
    assert log() == [] or said.startswith("lacks")  # what this process has loaded under a name stays


@pytest.mark.parametrize("said", list(SPOILT)[:3])
def test_a_folder_that_others_may_write_to_is_left_alone(
    said: str, folder: Path, trap: Path, log: Callable[[], list[str]]
) -> None:
    SPOILT[said](folder)
    as_a_new_process_would()
    assert not trap.exists()
    assert len(list(folder.iterdir())) == 1
    why, _ = log()
    assert why.startswith(str(folder))
    assert said in why
    assert why.endswith("the kernels are compiled for this process alone")


def test_another_source_compiler_or_flag_is_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marks = {build.fingerprint(compiler()), build.fingerprint(("/another/compiler",))}
    monkeypatch.setenv(build.FLAGS_VARIABLE, "-O0 -DANYTHING")
    marks.add(build.fingerprint(compiler()))
    for changed_file in ("navi.c", "common.h"):
        copy = tmp_path / changed_file
        shutil.copytree(build.SOURCES, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        with (copy / changed_file).open("a") as source:
            source.write("/* changed */\n")
        monkeypatch.setattr(build, "SOURCES", copy)
        marks.add(build.fingerprint(compiler()))
    assert len(marks) == 5
