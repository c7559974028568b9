"""The file of runs and the claims: whole lines, several writers, a disk that is full, a kill at any time."""

from __future__ import annotations

import json
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import pytest

from emo_hf.cli_errors import UserError
from emo_hf.study.results import Results, claim

FORK: Any = multiprocessing.get_context("fork")


def test_a_line_that_does_not_fit_on_the_disk_does_not_count_and_costs_no_other(tmp_path: Path) -> None:
    results, limits = Results(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    results.append({"key": "a", "text": "x" * 100})
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(UserError, match=r"runs\.jsonl could not be written, so the run is not done: .*too large"):
            results.append({"key": "b", "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert results.path.stat().st_size == 200, "a part of it is there"
    assert results.read().keys() == Results(tmp_path).lines.keys() == {"a"}
    results.append({"key": "c"})
    assert results.read().keys() == Results(tmp_path).lines.keys() == {"a", "c"}


def test_a_line_counts_for_all_when_its_end_is_there_and_must_be_that_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_bytes(b'{"key": "a", "end": 1')
    ours, theirs = Results(tmp_path), Results(tmp_path)
    assert ours.lines == {}
    file.write_bytes(b'{"key": "a", "end": 12}\n')
    assert ours.read() == theirs.read() == {"a": {"key": "a", "end": 12}}
    theirs.append({"key": "a", "end": 2.0})
    assert ours.read() == Results(tmp_path).lines == {"a": {"key": "a", "end": 2.0}}, "the last of a key"
    file.write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="no run of emo-hf compare: it has no key"):
        Results(tmp_path)


def _append(folder: Path, first: int) -> None:
    results = Results(folder)
    for number in range(first, first + 50):
        results.append({"key": str(number), "text": "x" * 20_000})


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    with FORK.Pool(3) as writers:
        writers.starmap(_append, [(tmp_path, 50 * i) for i in range(3)], chunksize=1)
    lines = [json.loads(text) for text in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert sorted(int(line["key"]) for line in lines) == list(range(150))


def _hold(folder: Path, connection: Any) -> None:
    held = claim(folder, "a")
    connection.send(held is not None)
    connection.recv()


def test_a_claim_is_of_one_process_and_goes_with_it(tmp_path: Path) -> None:
    ours, theirs = FORK.Pipe()
    other = FORK.Process(target=_hold, args=(tmp_path, theirs))
    other.start()
    try:
        assert ours.recv()
        assert claim(tmp_path, "a") is None
        assert claim(tmp_path, "b") is not None
    finally:
        other.kill()
        other.join()
    assert claim(tmp_path, "a") is not None
