"""The file of runs and the claims: whole lines, several writers, a disk that is full, a kill at any time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from emo_hf.cli_errors import UserError
from emo_hf.study.results import Results, claim


def test_a_line_is_there_for_others_at_once_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    ours, theirs = Results(tmp_path), Results(tmp_path)
    ours.append({"key": "a", "end": 1.0})
    assert theirs.read() == {"a": {"key": "a", "end": 1.0}}
    theirs.append({"key": "a", "end": 2.0})
    theirs.append({"key": "b", "end": 3.0})
    assert ours.read() == Results(tmp_path).lines == {"a": {"key": "a", "end": 2.0}, "b": {"key": "b", "end": 3.0}}


def test_a_write_in_parts_is_gone_through_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    Results(tmp_path).append({"key": "a", "text": "x" * 100})
    assert Results(tmp_path).lines == {"a": {"key": "a", "text": "x" * 100}}


@pytest.mark.parametrize("taken", [0, 9])
def test_a_line_that_does_not_fit_on_the_disk_does_not_count_as_done(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path)
    results.append({"key": "a"})
    before = results.path.read_bytes()
    write, calls = os.write, []

    def full(handle: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:taken]) if taken else 0

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="could not be written, so the run is not done"):
        results.append({"key": "b"})
    monkeypatch.undo()
    assert results.path.read_bytes() == before
    assert results.lines.keys() == {"a"}
    results.append({"key": "b"})
    assert Results(tmp_path).lines.keys() == {"a", "b"}


def test_what_a_kill_has_left_of_a_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_bytes(b'{"key": "a"}\n{"key": "b", "en')
    results = Results(tmp_path)
    assert results.lines.keys() == {"a"}
    results.append({"key": "c"})
    assert results.read().keys() == Results(tmp_path).lines.keys() == {"a", "c"}


def test_a_line_counts_only_with_its_end(tmp_path: Path) -> None:
    results = Results(tmp_path)
    (tmp_path / "runs.jsonl").write_bytes(b'{"key": "a", "end": 1')
    assert results.read() == {}
    (tmp_path / "runs.jsonl").write_bytes(b'{"key": "a", "end": 12}\n')
    assert results.read() == {"a": {"key": "a", "end": 12}}


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="no run of emo-hf compare: it has no key"):
        Results(tmp_path)


def _append(folder: Path, first: int) -> None:
    results = Results(folder)
    for number in range(first, first + 50):
        results.append({"key": str(number), "text": "x" * 5000})


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(tmp_path, 50 * i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [json.loads(text) for text in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert sorted(int(line["key"]) for line in lines) == list(range(150))


def _hold(folder: Path, connection: Any) -> None:
    held = claim(folder, "a")
    connection.send(held is not None)
    connection.recv()


def test_a_claim_is_of_one_process_and_goes_with_it(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(tmp_path, theirs))
    other.start()
    assert ours.recv()
    assert claim(tmp_path, "a") is None
    free = claim(tmp_path, "b")
    assert free is not None
    free.close()
    other.kill()
    other.join()
    again = claim(tmp_path, "a")
    assert again is not None
    again.close()
