"""Examples from files and datasets: columns, labels, splits, blocks; and what is said when they do not fit."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

from emo_hf.cli_errors import UserError
from emo_hf.train.data import Examples, load_examples
from emo_hf.train.options import DataArguments
from emo_hf.train.tasks import TASKS, get_task
from tests.train.tiny import sentences, write_csv, write_jsonl


def loaded(task: str = "sequence-classification", **options: Any) -> Examples:
    return load_examples(DataArguments(**options), get_task(task))


def features_of(task: str, model: str, **options: Any) -> Any:
    """What the collator gets."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    given = DataArguments(validation_fraction=0, **options)
    examples = load_examples(given, get_task(task))
    return get_task(task).make_features(examples.train, examples.columns, tokenizer, given), tokenizer


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "names", "write"),
    [
        (["b", "a", "c"] * 4, ["a", "b", "c"], write_csv),
        ([10, 9, 2] * 4, ["2", "9", "10"], write_csv),  # by number, not by text
        ([-1, 1] * 5, ["-1", "1"], write_jsonl),
        ([True, False] * 5, ["False", "True"], write_jsonl),
        (["NA", "null", "x"] * 4, ["NA", "null", "x"], write_csv),  # words, not holes
    ],
)
def test_labels_may_be_strings_or_integers(tmp_path: Path, labels: list[Any], names: list[str], write: Any) -> None:
    file = write(tmp_path / ("data.csv" if write is write_csv else "data.jsonl"), rows(labels))
    examples = loaded(train_file=file, validation_fraction=0)
    assert examples.label_names == names
    assert [names[i] for i in list(examples.train["labels"])] == [str(label) for label in labels]
    assert examples.validation is None


def test_a_text_or_a_pair_of_texts_becomes_tokens_beside_the_ids_of_its_label(tmp_path: Path, bert: str) -> None:
    named = [{"text": text, "labels": topic} for text, topic in sentences(12)]
    file = write_csv(tmp_path / "a.csv", named)
    features, _ = features_of("sequence-classification", bert, train_file=file, label_column="labels")
    assert features["labels"][:] == [0, 1, 2] * 4  # animals, colours, numbers
    assert {"input_ids", "attention_mask", "labels"} <= set(features.column_names)
    assert "text" not in features.column_names
    file = write_jsonl(tmp_path / "a.jsonl", [{"q": "the cat", "a": "a dog is red", "label": i % 2} for i in range(4)])
    features, tokenizer = features_of("sequence-classification", bert, train_file=file, text_columns=["q", "a"])
    assert tokenizer.decode(features[0]["input_ids"]) == "[CLS] the cat [SEP] a dog is red [SEP]"


def test_a_dataset_with_declared_classes_keeps_their_names_and_its_own_validation_split(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(rows([0, 1, 0, 1])).cast_column(
        "label", datasets.ClassLabel(names=["good", "bad", "unused"])
    )
    (tmp_path / "hub" / "data").mkdir(parents=True)
    made.to_parquet(tmp_path / "hub" / "data" / "train.parquet")
    made.select([1]).to_parquet(tmp_path / "hub" / "data" / "validation.parquet")
    examples = loaded(dataset=str(tmp_path / "hub"))
    assert examples.label_names == ["good", "bad", "unused"]
    assert list(examples.train["labels"]) == [0, 1, 0, 1]
    assert list(examples.validation["labels"]) == [1]
    with pytest.raises(UserError, match=r"validation_split: .* has no split 'dev', it has train, validation"):
        loaded(dataset=str(tmp_path / "hub"), validation_split="dev")
    with pytest.raises(UserError, match=r"dataset '.*nowhere' cannot be loaded"):
        loaded(dataset=str(tmp_path / "nowhere"))


def test_the_validation_split_has_the_same_share_of_each_label_and_is_always_the_same(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", rows(["often"] * 80 + ["seldom"] * 20 + ["once"]))
    examples, again, other = (loaded(train_file=file, validation_fraction=0.2, split_seed=seed) for seed in (0, 0, 1))
    counts = Counter(examples.label_names[i] for i in list(examples.validation["labels"]))
    assert counts == {"often": 16, "seldom": 4}  # a single example is for training
    assert set(examples.train["text"]).isdisjoint(examples.validation["text"])
    assert len(examples.train) == 81
    assert examples.validation["text"][:] == again.validation["text"][:]
    assert examples.validation["text"][:] != other.validation["text"][:]
    few = loaded(train_file=file, max_train_samples=2, max_eval_samples=1)
    assert (len(few.train), len(few.validation), few.label_names) == (2, 1, ["often", "once", "seldom"])


def test_validation_examples_have_the_labels_of_training_and_the_baseline_is_theirs(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", rows(["a", "a", "b"]))
    validation = write_csv(tmp_path / "validation.csv", rows(["a", "b", "b", "b"]))
    assert loaded(train_file=train, validation_file=validation).majority_baseline == 0.25
    other = write_csv(tmp_path / "other.csv", rows(["a", "c"]))
    said = r"validation example 2 has the label 'c', which no training example has \(labels: a, b\)"
    with pytest.raises(UserError, match=said):
        loaded(train_file=train, validation_file=other)


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("a.csv", "text,label\na,x\nb,\n", {}, "training example 2 has no label"),
        ("a.csv", "text,label\na,0.5\nb,1.5\n", {}, "has the label 0.5: labels are strings or integers"),
        ("a.csv", "text,label\na,x\nb,x\n", {}, r"all training examples have the label \['x'\]"),
        ("a.jsonl", '{"text": null, "label": "x"}\n{"text": "b", "label": "y"}', {},
         "training example 1 has nothing in column"),
        ("a.csv", "text,topic\na,x\nb,y\n", {}, "no column 'label', the columns are text, topic"),
        ("a.csv", "text,label\na,x\nb,y\n", {"text_columns": ["body"]}, "text_columns: no column 'body'"),
        ("a.csv", "q,a,label\na,b,x\nc,d,y\n", {}, "text_columns is needed: the columns are q, a, label"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b" oh', {}, "cannot be read: .*JSON"),
        ("a.csv", "", {}, "the file .* is empty"),
        ("a.xlsx", "x", {}, "sequence-classification reads files that end in .csv, .*, got"),
        ("a.csv", None, {}, "train_file: there is no file"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: str | None, options: dict[str, Any], said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        loaded(train_file=str(tmp_path / name), **options)


def test_text_files_are_read_by_paragraph_and_may_be_compressed(tmp_path: Path) -> None:
    file = tmp_path / "book.txt.gz"
    file.write_bytes(gzip.compress(b"the cat\nis red\n\nthe dog\n\na bird"))
    examples = loaded("causal-lm", train_file=str(file), validation_fraction=0)
    assert examples.train["text"][:] == ["the cat\nis red", "the dog", "a bird"]
    assert examples.label_names == []


def test_blocks_hold_all_tokens_in_order_with_an_end_after_each_text(tmp_path: Path, gpt2: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text, _ in sentences(20)])
    blocks, tokenizer = features_of("causal-lm", gpt2, train_file=file, max_length=8)
    assert {len(ids) for ids in blocks["input_ids"]} == {8}
    assert blocks["labels"][:] == blocks["input_ids"][:]
    expected = " ".join(f"{text} [SEP]" for text, _ in sentences(20)).split()
    found = tokenizer.decode([token for ids in blocks["input_ids"] for token in ids]).split()
    assert found == expected[: len(found)]
    assert len(expected) - len(found) < 8
    alone, _ = features_of("causal-lm", gpt2, train_file=file, max_length=4, packing=False)
    assert [len(ids) for ids in alone["input_ids"]] == [4] * 20
    whole, _ = features_of("causal-lm", gpt2, train_file=file, max_length=len(expected) + 1)
    assert [len(ids) for ids in whole["input_ids"]] == [len(expected)], "a rest that is all there is stays"


@pytest.mark.parametrize(("name", "data"), [(name, data) for name in TASKS for data in get_task(name).builtin])
def test_built_in_data_fit_their_task_and_no_example_is_on_both_sides(name: str, data: str) -> None:
    examples = loaded(name, dataset=data, max_train_samples=200, max_eval_samples=100)
    assert len(examples.train) == 200
    assert len(examples.validation) > 50
    if name != "image-classification":
        seen = {json.dumps(row[examples.columns[-1]] if len(examples.columns) == 1 else row) for row in examples.train}
        assert all(json.dumps(row) not in seen for row in examples.validation)
