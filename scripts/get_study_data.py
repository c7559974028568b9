"""Downloads the data of the published studies, and makes of them the files that the tasks in scripts/studies read.

    python scripts/get_study_data.py --to data     # 7 MB from GitHub, 8 MB on the disk
    EMO_HF_DATA=data emo-hf compare configs/studies/report.yaml --output_dir outputs/studies/report

Every raw file is of one commit and is refused unless it has the sha256 below; so is what is made of it. Sets that are
whole already are left as they are. Where GitHub cannot be reached, `--from FOLDER` takes the raw files from
FOLDER/<owner>/<repository>/<path> instead. The data are their authors'; look at each licence before you pass them on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import random
import sys
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from itertools import groupby
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """Where a set is from, and what is made of it; both kinds of files with their sha256."""

    repository: str
    commit: str
    licence: str
    raw: Mapping[str, str]
    made: Mapping[str, str]


# fmt: off
SOURCES = {
    "mnist_t10k": Source(
        "fgnt/mnist", "ae608a02b796c9ee908c082585a5f006fe05258e",
        "CC BY-SA 3.0 (as commonly stated); repo has no licence",
        {"t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"},
        {"t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"}),
    "trec": Source(
        "harvardnlp/sent-conv-torch", "d61ded09c99c0199d8c5bca946cd65864de2b296",
        "Dataset: free for research, no formal licence published. Repo code: MIT",
        {"data/raw/TREC.train": "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3",
         "data/raw/TREC.test": "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e"},
        {"train_int.csv": "10ccd2828df8a1a150bd3ff7b6cf08ade1dfc7eb8c802aa709e94aeac22451d8",
         "test_int.csv": "2e4aabadcfd72c34adca689676a9872ff7e03a41e5f1a532f8b18820b23ab5e2"}),
    "rt_polarity": Source(
        "yoonkim/CNN_sentence", "23e0e1f7355705bb083043fda05c031b15acb38c",
        "No licence file; Cornell: free for research with citation",
        {"rt-polarity.pos": "2da124ec187a9d5a29c9f04e91c540e02baed5af8868f550a26bd6fd4dbf8bf0",
         "rt-polarity.neg": "4ace77d558c3714723843f1d65b60c01e3417b208180f0728808d76ad0eeeaca"},
        {"train.csv": "212920bf930271605059fb219b0b612f582d50063f30f140bc208fc69fa4f65e",
         "validation.csv": "b6775275e5141fcc97f8d3e379d0ede2e846bab01baaa8fe9c0ce4797ecbff9f"}),
    "tinyshakespeare": Source(
        "karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e",
        "Text: public domain; repo: MIT (per its readme)",
        {"data/tinyshakespeare/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}),
    "squad_xquad_en": Source(
        "google-deepmind/xquad", "7d30520c717524000f0d9d2f9c10a069acd9d285",
        "CC BY-SA 4.0",
        {"xquad.en.json": "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29"},
        {"train.json": "b22aaed3cb0812c347f3ccc0123a76d467ecd3da0344c56c61056fd37cbbc834"}),
    "ner_wnut17": Source(
        "leondz/emerging_entities_17", "e52a2d2a71ac1a051ca2d532eef28653c5c02603",
        "CC BY 4.0",
        {"wnut17train.conll": "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5",
         "emerging.dev.conll": "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8"},
        {"train.json": "ac11a571381b48c1e88f5f5058849acc516210f72170c3e0d1f743efebc314cc",
         "validation.json": "56c4c7933df9c59a1845fb108f9b3afb269d57fad0663b0369bed4b3c87e8da7"}),
    "instruct_self_instruct": Source(
        "yizhongw/self-instruct", "0b26ccaa415992100fa32df62d41b994cf928e23",
        "Apache-2.0",
        {"data/seed_tasks.jsonl": "7779004fa198fdf27cf70a159363879d8a26c53329e11b436af17b3941875f48",
         "human_eval/user_oriented_instructions.jsonl":
            "81d60a117db495cecedecd9193504fd07c5b5a42f6699ef6b0f9da10fc22f42e"},
        {"prompt_completion.jsonl": "f042bf0b0754b3f8df5b24747ba51c86eaca1f5cd399b150a7a7746e4f09f416"}),
    "pref_dpo_en_demo": Source(
        "hiyouga/LLaMA-Factory", "ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30",
        "Repo Apache-2.0; the Hub dataset is Apache-2.0 per its author (not checked here)",
        {"data/dpo_en_demo.json": "b949be2421cfa62744afcf1b479f95b299d643d1a4c1c97d1341b314a1aa5cb3"},
        {"standard/train.jsonl": "d755b148e96321a240cafa70ba8aaadf70cd7f7e49d8c80bf0fcac86bdb01f84",
         "standard/test.jsonl": "4a3d5e8019400584b05d9755da903113f0d55b9e061a6298e52cf1031cade9e6"}),
}
# fmt: on


class DataError(Exception):
    """A file that could not be had, or is not what it should be."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data"), help="default: data, where the studies look as well")
    parser.add_argument("--from", type=Path, dest="folder", metavar="FOLDER", help="raw files that are already here")
    options = parser.parse_args(arguments)
    for name, source in SOURCES.items():
        try:
            made = _make(name, source, options.to / name, options.folder)
        except DataError as error:
            sys.exit(f"{name}: {error}")
        print(f"{name}: {'made of' if made else 'already there, from'} {source.repository}; {source.licence}")


def _make(name: str, source: Source, to: Path, folder: Path | None) -> bool:
    """Whether anything had to be made."""
    present = {path: (to / path).read_bytes() for path in source.made if (to / path).is_file()}
    whole = {_sha256(content): content for path, content in present.items() if _sha256(content) == source.made[path]}
    if len(whole) == len(source.made):
        return False
    raw = [whole.get(digest) or _raw(source, path, folder) for path, digest in source.raw.items()]
    made = dict(zip(source.made, MAKERS[name](*raw) if name in MAKERS else raw, strict=True))
    for path, content in made.items():
        _check(content, source.made[path], f"what was made for {path}", "Please report this")
    for path, content in made.items():
        if present.get(path) != content:
            _write(to / path, content)
    return True


def _raw(source: Source, path: str, folder: Path | None) -> bytes:
    """A raw file, from the folder if there is one."""
    url = f"https://raw.githubusercontent.com/{source.repository}/{source.commit}/{path}"
    here = (folder or Path("FOLDER")) / source.repository / path
    elsewhere = f"download {url} elsewhere, save it as {here}, do so with all the others, and use --from"
    if folder:
        if not here.is_file():
            raise DataError(f"there is no {here}: save {url} there, or leave --from away")
        return _check(here.read_bytes(), source.raw[path], str(here), f"Save {url} there")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
    except (OSError, HTTPException) as error:
        raise DataError(f"cannot download ({error}). Try again, what is whole is kept; or {elsewhere}") from error
    return _check(content, source.raw[path], url, f"It was altered on its way: try again, or {elsewhere}")


def _check(content: bytes, digest: str, what: str, advice: str) -> bytes:
    if (found := _sha256(content)) != digest:
        raise DataError(f"{what} has the sha256 {found}, not {digest}, and is not used. {advice}.")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
