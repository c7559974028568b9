"""Downloads the data of the published studies, and makes of them the files that the tasks in scripts/studies read.

    python scripts/get_study_data.py --to data     # 7 MB from GitHub, 8 MB on the disk
    EMO_HF_DATA=data emo-hf compare configs/studies/report.yaml --output_dir outputs/studies/report

Every raw file is of one commit, and what is made of a set's files is refused unless it has the sha256 below. Sets that
are whole already are left as they are. Where GitHub cannot be reached, `--from FOLDER` takes the raw files from
FOLDER/<owner>/<repository>/<path> instead. The data are their authors'; look at each licence before you pass them on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import random
import sys
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from itertools import groupby
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """Where a set is from, the files that are made of its raw ones, and the sha256 of all of these together."""

    repository: str
    commit: str
    licence: str
    raw: Sequence[str]
    made: Sequence[str]
    sha256: str


SOURCES = {
    "mnist_t10k": Source(
        "fgnt/mnist", "ae608a02b796c9ee908c082585a5f006fe05258e",
        "CC BY-SA 3.0 (as commonly stated); repo has no licence",
        ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
        ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
        "f2320912a41cb05f3286e1020d1a3482d4c14f8196db1028fc325798a78f21c2"),
    "trec": Source(
        "harvardnlp/sent-conv-torch", "d61ded09c99c0199d8c5bca946cd65864de2b296",
        "Dataset: free for research, no formal licence published. Repo code: MIT",
        ["data/raw/TREC.train", "data/raw/TREC.test"],
        ["train_int.csv", "test_int.csv"],
        "ef745540c86b9bae6371808ed902b9c582faef91044de09071890540f922ce45"),
    "rt_polarity": Source(
        "yoonkim/CNN_sentence", "23e0e1f7355705bb083043fda05c031b15acb38c",
        "No licence file; Cornell: free for research with citation",
        ["rt-polarity.pos", "rt-polarity.neg"],
        ["train.csv", "validation.csv"],
        "461ed12f4baacba0984b694be122027c3ce34a41e5477514935f7084e3086dd4"),
    "tinyshakespeare": Source(
        "karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e",
        "Text: public domain; repo: MIT (per its readme)",
        ["data/tinyshakespeare/input.txt"],
        ["input.txt"],
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
    "squad_xquad_en": Source(
        "google-deepmind/xquad", "7d30520c717524000f0d9d2f9c10a069acd9d285",
        "CC BY-SA 4.0",
        ["xquad.en.json"],
        ["train.json"],
        "b22aaed3cb0812c347f3ccc0123a76d467ecd3da0344c56c61056fd37cbbc834"),
    "ner_wnut17": Source(
        "leondz/emerging_entities_17", "e52a2d2a71ac1a051ca2d532eef28653c5c02603",
        "CC BY 4.0",
        ["wnut17train.conll", "emerging.dev.conll"],
        ["train.json", "validation.json"],
        "b60561c466df7ee977e0baaf170954b8d3ce1f1cadebf05230737cd6dce65576"),
    "instruct_self_instruct": Source(
        "yizhongw/self-instruct", "0b26ccaa415992100fa32df62d41b994cf928e23",
        "Apache-2.0",
        ["data/seed_tasks.jsonl", "human_eval/user_oriented_instructions.jsonl"],
        ["prompt_completion.jsonl"],
        "f042bf0b0754b3f8df5b24747ba51c86eaca1f5cd399b150a7a7746e4f09f416"),
    "pref_dpo_en_demo": Source(
        "hiyouga/LLaMA-Factory", "ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30",
        "Repo Apache-2.0; the Hub dataset is Apache-2.0 per its author (not checked here)",
        ["data/dpo_en_demo.json"],
        ["standard/train.jsonl", "standard/test.jsonl"],
        "08e2f9a5228a0b58c1a3ab5847cef1b8ce03f3cb4b4b998e8fe91ce0fbc6217f"),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data"), help="default: data, where the studies look as well")
    parser.add_argument("--from", type=Path, dest="folder", metavar="FOLDER", help="raw files that are already here")
    options = parser.parse_args(arguments)
    for name, source in SOURCES.items():
        files = [options.to / name / path for path in source.made]
        if all(map(Path.is_file, files)) and _sha256(file.read_bytes() for file in files) == source.sha256:
            print(f"{name}: already there, from {source.repository}; {source.licence}")
            continue
        made = _made(name, source, options.folder)
        for file, content in zip(files, made, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        print(f"{name}: made of {source.repository}; {source.licence}")


def _made(name: str, source: Source, folder: Path | None) -> Sequence[bytes]:
    """What is made of a set's raw files.

    Raises:
        SystemExit: if a raw file cannot be had, or what was made is not what it should be.
    """
    raw = []
    for path in source.raw:
        url = f"https://raw.githubusercontent.com/{source.repository}/{source.commit}/{path}"
        here = (folder or Path("FOLDER")) / source.repository / path
        try:
            raw.append(here.read_bytes() if folder else _download(url))
        except (OSError, HTTPException) as error:
            elsewhere = f"save {url} as {here}, do so with all the others, and use --from {folder or 'FOLDER'}"
            sys.exit(f"{name}: a raw file cannot be had ({error}). Try again, or {elsewhere}.")
    try:
        made = MAKERS[name](*raw) if name in MAKERS else raw
        found = _sha256(made)
    except (ValueError, LookupError, TypeError) as error:
        found = repr(error)
    if found != source.sha256:
        wrong = f"what was made of {', '.join(source.raw)} has the sha256 {found}, not {source.sha256}"
        sys.exit(f"{name}: {wrong}, and is not used. The files of {source.repository} were altered on their way.")
    return made


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def _sha256(contents: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()


def trec(*raw: bytes) -> list[bytes]:
    """`ENTY:animal What fowl …` → the question, and the number of the coarse label."""
    labels = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    parts = [[line.split(" ", 1) for line in text.decode("latin-1").split("\n") if line] for text in raw]
    return [_csv((text.strip(), labels.index(kind.split(":")[0])) for kind, text in lines) for lines in parts]


def rt_polarity(positive: bytes, negative: bytes) -> list[bytes]:
    """Shuffled; the first tenth is for validation."""
    parts = ((positive, 1), (negative, 0))
    rows = [(line.strip(), label) for text, label in parts for line in text.decode("latin-1").split("\n") if line]
    random.Random(0).shuffle(rows)
    return [_csv(rows[len(rows) // 10 :]), _csv(rows[: len(rows) // 10])]


def squad(raw: bytes) -> list[bytes]:
    """The questions of the first 40 of 48 articles, flat."""
    rows = [
        {
            "id": asked["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {key: [answer[key] for answer in asked["answers"]] for key in ("text", "answer_start")},
        }
        for article in json.loads(raw)["data"][:40]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]
    return [json.dumps({"version": "1.1", "data": rows}, ensure_ascii=False).encode()]


def ner(*raw: bytes) -> list[bytes]:
    """Lines `word TAB tag`; between sentences empty ones, some of them with a TAB."""
    made = []
    for text in raw:
        words = [line.strip().split("\t") for line in text.decode().split("\n")]
        sentences = [list(group) for full, group in groupby(words, lambda word: len(word) > 1) if full]
        made.append(_json_lines({"tokens": [w for w, _ in one], "ner_tags": [t for _, t in one]} for one in sentences))
    return made


def instructions(*raw: bytes) -> list[bytes]:
    """A task's instruction, with the input of its first instance if that has one, and the output."""
    rows = []
    for task in (json.loads(line) for text in raw for line in text.decode().split("\n") if line):
        first = task["instances"][0]
        asked = "\n".join(filter(None, (task["instruction"], first["input"])))
        rows.append({"prompt": asked, "completion": first["output"]})
    return [_json_lines(rows)]


def preferences(raw: bytes) -> list[bytes]:
    """Each conversation as one text, its speakers named, a system as the assistant; the last tenth is for tests."""
    rows, speakers = [], {"human": "Human", "gpt": "Assistant", "system": "Assistant"}
    for line in json.loads(raw):
        asked = "".join(f"\n\n{speakers[turn['from']]}: {turn['value']}" for turn in line["conversations"])
        answers = {key: f" {line[key]['value']}" for key in ("chosen", "rejected")}
        rows.append({"prompt": f"{asked}\n\nAssistant:", **answers})
    return [_json_lines(rows[: -(len(rows) // 10)]), _json_lines(rows[-(len(rows) // 10) :])]


def _csv(rows: Iterable[tuple[str, int]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("sentence", "label"), *rows])
    return file.getvalue().encode()


def _json_lines(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


MAKERS: Mapping[str, Callable[..., Sequence[bytes]]] = {  # those of the other sets are read as they are
    "trec": trec,
    "rt_polarity": rt_polarity,
    "squad_xquad_en": squad,
    "ner_wnut17": ner,
    "instruct_self_instruct": instructions,
    "pref_dpo_en_demo": preferences,
}

if __name__ == "__main__":
    main()
