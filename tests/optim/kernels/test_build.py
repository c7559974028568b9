"""Compiling the kernels once per machine, into a cache from which nothing is loaded that others may have put there."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emo_hf.optim.kernels import build, cache
from tests.optim.kernels.common import needs_compiler
from tests.optim.kernels.references import CASES

PROGRAM = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and a process that has not asked for kernels yet."""
    path = tmp_path / "cache"
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(path))
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


def by_others(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 65534, 65534)


def writable_by_group(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def writable_by_all(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def a_link(path: Path) -> None:
    shutil.move(path, path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def trap(folder: Path, tmp_path: Path) -> Path:
    """A file that comes to be when a library is loaded which lies in the cache under a right name, mode and owner."""
    sprung = tmp_path / "sprung"
    program, library = tmp_path / "trap.c", tmp_path / "trap.so"
    program.write_text(PROGRAM % sprung)
    subprocess.run([*compiler(), "-shared", "-fPIC", str(program), "-o", str(library)], check=True)
    folder.mkdir(mode=0o700)
    name = cache.library_name(build.fingerprint(compiler()), library.read_bytes())
    library.chmod(0o700)
    shutil.copy(library, folder / name)
    return sprung


def trapped(folder: Path) -> Path:
    return next(folder.glob("kernels-*.so"))


@needs_compiler
def test_one_compilation_serves_all_processes(folder: Path, log: Callable[[], list[str]]) -> None:
    for _ in range(3):
        as_a_new_process_would()
    assert [message[:16] for message in log()] == ["compiled kernels"]
    assert len(list(folder.iterdir())) == 1


@needs_compiler
def test_a_library_of_the_user_in_its_place_is_loaded(trap: Path) -> None:
    build.load(compiler())
    assert trap.exists()


@needs_compiler
def test_a_library_in_the_cache_that_lacks_the_kernels_is_compiled_anew(
    folder: Path, trap: Path, log: Callable[[], list[str]]
) -> None:
    useless = trapped(folder)
    as_a_new_process_would()
    lacking, compiled = log()
    assert "lacks what was compiled into it" in lacking
    assert compiled.startswith("compiled kernels")
    assert not useless.exists()
    as_a_new_process_would()
    assert log() == []


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@needs_compiler
def test_a_compiler_that_yields_a_library_without_kernels_leaves_the_user_without_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    empty = tmp_path / "empty.c"
    empty.write_text("int nothing;\n", encoding="utf-8")
    command = f'while [ "$1" != "-o" ]; do shift; done; exec {shlex.join(compiler())} -shared -fPIC {empty} -o "$2"'
    monkeypatch.setenv("CC", str(script(tmp_path / "odd-cc", command)))
    assert build.kernels() is None
    (said,) = log()
    assert "lacks what was compiled into it" in said
    assert list(folder.iterdir()) == []


@needs_compiler
def test_where_the_cache_is_full_there_is_another_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    full = f'case "$*" in *{folder}*) echo "No space left on device" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", str(script(tmp_path / "full-cc", f'{full}; exec {shlex.join(compiler())} "$@"')))
    as_a_new_process_would()
    compiled, why = log()
    assert compiled.startswith("compiled kernels")
    assert "No space left on device" in why
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("how", ["hangs", "is killed"])
def test_a_compiler_that_hangs_or_is_killed_is_ended_with_what_it_began(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    begun = tmp_path / "begun"
    monkeypatch.setattr(build, "TIMEOUT", 1.0)
    after = "wait" if how == "hangs" else "kill -9 $$"
    monkeypatch.setenv("CC", str(script(tmp_path / "slow-cc", f"sleep 600 & echo $! >> {begun}; {after}")))
    assert build.kernels() is None
    assert "could not compile kernels" in log()[-1]
    deadline = time.monotonic() + 20
    while any(Path("/proc", child, "exe").exists() for child in begun.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_compiler
def test_the_compiler_may_be_a_command_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrapper = script(tmp_path / "a cache", f'echo "$@" >> {tmp_path}/seen; exec "$@"')
    monkeypatch.setenv("CC", f"'{wrapper}' {shlex.join(compiler())} -DANYTHING")
    as_a_new_process_would()
    assert " -DANYTHING -O3 " in (tmp_path / "seen").read_text()


@pytest.mark.parametrize("asked", ["no-such-compiler", "'", "   "])
@needs_compiler
def test_a_cc_that_makes_no_sense_leaves_the_choice_to_us(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    chosen = build.find_compiler()
    monkeypatch.setenv("CC", asked)
    assert build.find_compiler() == chosen


@needs_compiler
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (by_others, "belongs to user 65534, not to"),
        (writable_by_group, r"may be changed by others (mode 720): chmod go-w would prevent it"),
        (writable_by_all, "may be changed by others (mode 702)"),
        (a_link, "is not a file of its own"),
        (changed, "does not hold what was compiled into it"),
        (cut_off, "does not hold what was compiled into it"),
        (emptied, "does not hold what was compiled into it"),
    ],
)
def test_a_library_that_others_may_have_put_there_is_not_loaded_but_compiled_anew(
    spoil: Callable[[Path], None], said: str, folder: Path, trap: Path, log: Callable[[], list[str]]
) -> None:
    spoil(trapped(folder))
    as_a_new_process_would()
    assert not trap.exists()
    why, compiled = log()
    assert said in why
    assert why.endswith("it is not loaded, and the kernels are compiled anew")
    assert compiled.startswith("compiled kernels")
    as_a_new_process_would()
    assert log() == []  # the one that was compiled has taken its place
    assert not trap.exists()


@needs_compiler
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (by_others, "belongs to user 65534, not to"),
        (writable_by_group, r"may be changed by others (mode 720)"),
        (writable_by_all, "may be changed by others (mode 702)"),
    ],
)
def test_a_folder_that_others_may_write_to_is_left_alone(
    spoil: Callable[[Path], None], said: str, folder: Path, trap: Path, log: Callable[[], list[str]]
) -> None:
    spoil(folder)
    as_a_new_process_would()
    assert not trap.exists()
    assert len(list(folder.iterdir())) == 1
    why, _ = log()
    assert why.startswith(str(folder))
    assert said in why
    assert why.endswith("the kernels are compiled for this process alone")


@needs_compiler
def test_what_is_compiled_can_be_changed_by_its_user_alone(folder: Path, log: Callable[[], list[str]]) -> None:
    before = os.umask(0)
    try:
        as_a_new_process_would()
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o077 for path in (folder, trapped(folder))] == [0, 0]
    log()
    as_a_new_process_would()
    assert log() == []


@needs_compiler
def test_a_cache_folder_that_cannot_be_made_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    as_a_new_process_would()


@needs_compiler
def test_processes_that_compile_at_once_do_not_disturb_each_other(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    made_from = build.fingerprint(compiler())
    with ThreadPoolExecutor(3) as processes:
        list(processes.map(lambda _: build.build(compiler(), folder, made_from), range(3)))
    assert cache.find_library(folder, made_from) is not None
    assert all(cache.objection_to_library(path, made_from) is None for path in folder.iterdir())


@needs_compiler
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


@pytest.mark.parametrize("found", [None, ("false",)])
def test_without_a_working_compiler_there_are_no_kernels_and_one_line_of_log(
    found: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch, log: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: found)
    assert build.kernels() is None
    assert build.kernels() is None
    (said,) = log()
    assert said.endswith("the optimizer steps in plain PyTorch, more slowly")


@needs_compiler
def test_a_package_without_its_sources_steps_in_plain_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.kernels() is None
    (said,) = log()
    assert "installed without its C sources" in said


@needs_compiler
@pytest.mark.parametrize("flags", ["-Wno-such-thing -nonsense", "'"])
def test_flags_that_do_not_work_leave_the_user_without_kernels(
    flags: str, monkeypatch: pytest.MonkeyPatch, log: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv(build.FLAGS_VARIABLE, flags)
    assert build.kernels() is None
    (said,) = log()
    assert "could not compile kernels" in said


@needs_compiler
def test_the_sources_compile_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.FLAGS_VARIABLE, "-O0 -Wall -Wextra -Wconversion -pedantic -Werror")
    as_a_new_process_would()


@needs_compiler
def test_the_library_has_all_rules_as_python_reads_them() -> None:
    library = build.kernels()
    assert library is not None
    for case in CASES:
        rule = library.rule(case.function)
        assert rule.state_tensors == case.state_tensors
        assert rule.takes_scales == any(other.scaled for other in CASES if other.function == case.function)
    with pytest.raises(ValueError, match="emo_nobody"):
        library.rule("emo_nobody")
