"""The script that gets the studies' data, on made-up raw files in the formats of the real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
sys.path.insert(0, str(SCRIPTS / "studies"))

import adapted
import digits
import get_study_data
import language
import multimodal
import pretrained
import study_data as data
import words

from emo_hf.study.task import HALVES, Task

TABLE = get_study_data.SOURCES
TEXT = "what a long film about a river and its king"


def _idx(*size: int) -> bytes:
    count = int(torch.tensor(size).prod())
    return gzip.compress(bytes([0, 0, 8, len(size)]) + b"".join(n.to_bytes(4, "big") for n in size) + bytes(count))


def _lines(rows: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@cache
def _raw_files() -> dict[str, list[bytes]]:
    asked = [f"{kind}:x {TEXT} , number {n} ? \xe9 " for n in range(20) for kind in ("ABBR", "ENTY", "NUM")]
    reviews = [[f'{word} , "{TEXT}" no {n} \xe9 ' for n in range(60)] for word in ("good", "bad")]
    tagged = ["@you\tO\nLake\tB-location\nCómo\tI-location\n", "says\tO\nyes\tO\n\t"]
    answer = {"question": "?", "answers": [{"text": "a", "answer_start": 5}]}
    paragraphs = [[{"context": f"{n} — {TEXT}. " * 3, "qas": [{"id": f"{n}{q}", **answer}]} for q in range(2)]
                  for n in range(48)]  # fmt: skip
    articles = [{"title": f"T{n}", "paragraphs": two} for n, two in enumerate(paragraphs)]
    tasks = [{"instruction": f"say {n}", "instances": [{"input": "ünd" * (n % 2), "output": "so"}]} for n in range(60)]
    turns = [{"from": who, "value": who + " speaks"} for who in ("system", "human", "gpt", "human")]
    pairs = [
        {"conversations": turns, **{c: {"value": f"{c} {n}"} for c in ("chosen", "rejected")}} for n in range(100)
    ]
    return {
        "mnist_t10k": [_idx(10000, 28, 28), _idx(10000)],
        "trec": ["\n".join(asked).encode("latin-1"), ("\n".join(asked[:9]) + "\n").encode("latin-1")],
        "rt_polarity": ["\n".join(each).encode("latin-1") for each in reviews],
        "tinyshakespeare": [f"{TEXT}\n".encode() * 40],
        "squad_xquad_en": [json.dumps({"data": articles}).encode()],
        "ner_wnut17": ["\n".join(tagged * 30).encode(), "\n".join(tagged * 2).encode()],
        "instruct_self_instruct": [_lines(tasks), _lines(tasks)],
        "pref_dpo_en_demo": [json.dumps(pairs).encode()],
    }


@pytest.fixture(autouse=True)
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the raw files, which the script's table now names."""
    sources, folder = {}, tmp_path / "raw"
    for name, contents in _raw_files().items():
        source = TABLE[name]
        for path, content in zip(source.raw, contents, strict=True):
            place = folder / source.repository / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        made = get_study_data.MAKERS[name](*contents) if name in get_study_data.MAKERS else contents
        sources[name] = source._replace(sha256=hashlib.sha256(b"".join(made)).hexdigest())
    monkeypatch.setattr(get_study_data, "SOURCES", sources)
    monkeypatch.setattr(get_study_data.urllib.request, "urlopen", _no_network)
    monkeypatch.setenv(data.PLACE, str(tmp_path / "data"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(adapted, "PRETRAINING", 2)
    monkeypatch.setattr(multimodal, "PAIRS", 128)
    pretrained.encoded.cache_clear()
    return folder


def _no_network(url: str, timeout: float) -> io.BytesIO:
    raise URLError(f"no network for {url} within {timeout} s")


def _get(raw: Path | None) -> Path:
    to = Path(os.environ[data.PLACE])
    get_study_data.main(["--to", str(to), *([] if raw is None else ["--from", str(raw)])])
    return to


def _files(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


TASKS: list[Callable[[int], Task]] = [
    digits.digits, words.reviews, words.questions, words.names, language.plays, language.wikipedia,
    adapted.instructions, adapted.preferences, multimodal.captions,
    partial(pretrained.classify, data="questions", batch=2),
    partial(pretrained.classify, data="reviews", batch=2, lora=False),
]  # fmt: skip


@pytest.mark.parametrize("task", TASKS, ids=lambda task: getattr(task, "__name__", None) or task.keywords["data"])
def test_the_tasks_can_be_made_of_what_was_got(raw: Path, task: Callable[[int], Task]) -> None:
    _get(raw)
    made = task(0)
    made.loss(made.model, next(iter(made.train_batches(0)))).backward()
    trained = sum(parameter.numel() for parameter in made.model.parameters() if parameter.grad is not None)
    assert trained == sum(parameter.numel() for parameter in made.model.parameters() if parameter.requires_grad)
    made.model.eval()
    ends = [made.evaluate(made.model, half)["loss"] for half in HALVES]
    assert all(map(math.isfinite, ends))


def test_the_files_say_what_the_raw_ones_do(raw: Path) -> None:
    place = _get(raw)
    assert set(_files(place)) == {f"{name}/{path}" for name, source in TABLE.items() for path in source.made}
    assert data.rows("trec", "train_int.csv")[1] == {"sentence": f"{TEXT} , number 0 ? \xe9", "label": "2"}
    assert len(data.rows("trec", "test_int.csv")) == 9
    learned, judged = data.rows("rt_polarity", "train.csv"), data.rows("rt_polarity", "validation.csv")
    assert (len(learned), len(judged)) == (108, 12)
    assert len({row["sentence"] for row in [*learned, *judged]}) == 120
    assert all(row["label"] == str(int(row["sentence"].startswith("good"))) for row in [*learned, *judged])
    contexts = [row["context"] for row in json.loads(data.path("squad_xquad_en", "train.json").read_bytes())["data"]]
    assert contexts == [f"{n} — {TEXT}. " * 3 for n in range(40) for _ in range(2)]
    assert data.json_lines("ner_wnut17", "validation.json")[:2] == [
        {"tokens": ["@you", "Lake", "Cómo"], "ner_tags": ["O", "B-location", "I-location"]},
        {"tokens": ["says", "yes"], "ner_tags": ["O", "O"]},
    ]
    answers = data.json_lines("instruct_self_instruct", "prompt_completion.jsonl")
    assert [line["prompt"] for line in answers[:2]] == ["say 0", "say 1\nünd"]
    pairs = data.json_lines("pref_dpo_en_demo", "standard", "test.jsonl")
    asked = "\n\nAssistant: system speaks\n\nHuman: human speaks\n\nAssistant: gpt speaks\n\nHuman: human speaks"
    assert pairs[0] == {"prompt": f"{asked}\n\nAssistant:", "chosen": " chosen 90", "rejected": " rejected 90"}
    assert len(pairs) == 10


def test_what_is_not_what_it_should_be_is_refused_and_leaves_nothing_behind(raw: Path) -> None:
    changed = raw / "harvardnlp/sent-conv-torch/data/raw/TREC.test"
    for content in (changed.read_bytes() + b"NUM:x how many ?\n", b"<html>sign in</html>"):
        changed.write_bytes(content)
        with pytest.raises(SystemExit, match=r"trec: what was made of .*TREC\.test has the sha256 .* is not used"):
            _get(raw)
    assert {path.split("/")[0] for path in _files(raw.parent / "data")} == {"mnist_t10k"}  # which came before


def test_whole_sets_are_kept_and_only_the_others_are_got_again(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = _get(raw)
    before = _files(place)
    _get(None)  # there is no network
    (place / "mnist_t10k/t10k-labels-idx1-ubyte.gz").unlink()
    (place / "rt_polarity/train.csv").write_bytes(before["rt_polarity/train.csv"][:100])
    asked = []

    def download(url: str, timeout: float) -> io.BytesIO:
        repository = "/".join(url.split("/")[3:5])
        source = next(each for each in TABLE.values() if each.repository == repository)
        asked.append(path := url.partition(f"/{source.commit}/")[2])
        return io.BytesIO((raw / repository / path).read_bytes())

    monkeypatch.setattr(get_study_data.urllib.request, "urlopen", download)
    _get(None)
    assert asked == [*TABLE["mnist_t10k"].raw, "rt-polarity.pos", "rt-polarity.neg"]
    assert _files(place) == before


def test_what_cannot_be_had_is_named_with_what_to_do(raw: Path) -> None:
    url = rf"https://raw\.githubusercontent\.com/fgnt/mnist/{TABLE['mnist_t10k'].commit}/t10k-images-idx3-ubyte\.gz"
    with pytest.raises(SystemExit, match=rf"no network.*Try again, or save {url} as FOLDER/fgnt/.* --from FOLDER"):
        _get(None)
    (raw / "fgnt/mnist/t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(SystemExit, match=rf"No such file .*save {url} as {raw}/fgnt"):
        _get(raw)
    assert not (raw.parent / "data").exists()
    for source in TABLE.values():
        assert re.fullmatch(r"[0-9a-f]{40} [0-9a-f]{64}", f"{source.commit} {source.sha256}")
    assert set(get_study_data.MAKERS) < set(TABLE)
