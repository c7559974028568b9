"""Examples from files and datasets: columns, labels, splits, blocks; and what is said when they do not fit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

from emo_hf.cli_errors import UserError
from emo_hf.train.data import Examples, load_examples
from emo_hf.train.options import DataArguments
from emo_hf.train.tasks import causal_lm, sequence_classification
from emo_hf.train.tasks.causal_lm import pack
from tests.train.tiny import save_bert, save_gpt2, sentences, topics_csv, write_csv, write_jsonl


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def classified(**options: Any) -> Examples:
    return load_examples(DataArguments(**options), sequence_classification.TASK)


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "c"] * 4, ["a", "b", "c"]),
        ([10, 9, 2] * 4, ["2", "9", "10"]),  # by number, not by text
        ([-1, 1] * 5, ["-1", "1"]),
        ([True, False] * 5, ["False", "True"]),
        (["NA", "null", "x"] * 4, ["NA", "null", "x"]),  # words, not holes
    ],
)
@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_labels_may_be_strings_or_integers(tmp_path: Path, write: Any, labels: list[Any], names: list[str]) -> None:
    file = tmp_path / ("data.csv" if write is write_csv else "data.jsonl")
    examples = classified(train_file=write(file, rows(labels)), validation_fraction=0)
    assert examples.label_names == names
    assert [names[i] for i in list(examples.train["labels"])] == [str(label) for label in labels]
    assert examples.validation is None


def test_string_labels_in_a_column_named_labels_become_ids_in_the_features(tmp_path: Path) -> None:
    rows_ = [{"text": text, "labels": topic} for text, topic in sentences(12)]
    options = DataArguments(
        train_file=write_csv(tmp_path / "a.csv", rows_), label_column="labels", validation_fraction=0
    )
    examples = load_examples(options, sequence_classification.TASK)
    tokenizer = AutoTokenizer.from_pretrained(save_bert(tmp_path / "bert"))
    features = sequence_classification.TASK.make_features(examples.train, examples.columns, tokenizer, options)
    assert features["labels"][:] == [0, 1, 2] * 4  # animals, colours, numbers
    assert set(features.column_names) >= {"input_ids", "attention_mask", "labels"}
    assert "text" not in features.column_names


def test_a_dataset_with_declared_classes_keeps_their_names_and_its_own_validation_split(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(rows([0, 1, 0, 1])).cast_column(
        "label", datasets.ClassLabel(names=["good", "bad", "unused"])
    )
    (tmp_path / "hub" / "data").mkdir(parents=True)
    made.to_parquet(tmp_path / "hub" / "data" / "train.parquet")
    made.select([1]).to_parquet(tmp_path / "hub" / "data" / "validation.parquet")
    examples = classified(dataset=str(tmp_path / "hub"))
    assert examples.label_names == ["good", "bad", "unused"]
    assert list(examples.train["labels"]) == [0, 1, 0, 1]
    assert list(examples.validation["labels"]) == [1]
    with pytest.raises(UserError, match=r"validation_split: .* has no split 'dev', it has train, validation"):
        classified(dataset=str(tmp_path / "hub"), validation_split="dev")


def test_the_validation_split_has_the_same_share_of_each_label_and_is_always_the_same(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", rows(["often"] * 80 + ["seldom"] * 20 + ["once"]))
    examples = classified(train_file=file, validation_fraction=0.2)
    again = classified(train_file=file, validation_fraction=0.2)
    other = classified(train_file=file, validation_fraction=0.2, split_seed=1)
    assert examples.validation is not None
    assert again.validation is not None
    assert other.validation is not None
    counts = Counter(examples.label_names[i] for i in list(examples.validation["labels"]))
    assert counts == {"often": 16, "seldom": 4}  # a single example is for training
    assert set(examples.train["text"]).isdisjoint(examples.validation["text"])
    assert len(examples.train) == 81
    assert examples.validation["text"][:] == again.validation["text"][:]
    assert examples.validation["text"][:] != other.validation["text"][:]


def test_the_majority_baseline_is_that_of_the_validation_examples(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", rows(["a", "a", "b"]))
    validation = write_csv(tmp_path / "validation.csv", rows(["a", "b", "b", "b"]))
    assert classified(train_file=train, validation_file=validation).majority_baseline == 0.25


def test_fewer_samples_still_have_every_label_name(tmp_path: Path) -> None:
    examples = classified(train_file=topics_csv(tmp_path), max_train_samples=2, max_eval_samples=1)
    assert len(examples.train) == len(list(examples.train["labels"])) == 2
    assert examples.validation is not None
    assert len(examples.validation) == len(list(examples.validation["labels"])) == 1
    assert examples.label_names == ["animals", "colours", "numbers"]
    topics = dict(sentences(48))
    assert [topics[text] for text in examples.train["text"]] == [
        examples.label_names[i] for i in list(examples.train["labels"])
    ]


def test_pairs_of_texts_are_read_together(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"q": "the cat", "a": "a dog is red", "label": i % 2} for i in range(4)])
    options = DataArguments(train_file=file, text_columns=["q", "a"], validation_fraction=0)
    examples = load_examples(options, sequence_classification.TASK)
    tokenizer = AutoTokenizer.from_pretrained(save_bert(tmp_path / "bert"))
    features = sequence_classification.TASK.make_features(examples.train, examples.columns, tokenizer, options)
    assert tokenizer.decode(features[0]["input_ids"]) == "[CLS] the cat [SEP] a dog is red [SEP]"


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("text,label\na,x\nb,\n", {}, "training example 2 has no label"),
        ("text,label\na,0.5\nb,1.5\n", {}, "has the label 0.5: labels are strings or integers"),
        (
            "text,label\na,x\nb,x\n",
            {},
            r"all training examples have the label \['x'\]",
        ),
        ("text,label\n", {}, "cannot be read|no training examples"),
        ('{"text": null, "label": "x"}\n{"text": "b", "label": "y"}', {}, "training example 1 has nothing in column"),
        ("text,topic\na,x\nb,y\n", {}, "no column 'label', the columns are text, topic"),
        ("text,label\na,x\nb,y\n", {"text_columns": ["body"]}, "text_columns: no column 'body'"),
        ("q,a,label\na,b,x\nc,d,y\n", {}, "text_columns is needed: the columns are q, a, label"),
        ('text,label\n"a,x\nb,y\n', {}, "cannot be read: .*EOF inside string"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, content: str, options: dict[str, Any], said: str
) -> None:
    file = tmp_path / ("data.jsonl" if content.startswith("{") else "data.csv")
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        classified(train_file=str(file), **options)


def test_a_validation_label_that_training_has_not_is_named_with_its_row(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", rows(["a", "b"]))
    validation = write_csv(tmp_path / "validation.csv", rows(["a", "c"]))
    with pytest.raises(
        UserError, match=r"validation example 2 has the label 'c', which no training example has \(labels: a, b\)"
    ):
        classified(train_file=train, validation_file=validation)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.csv", "train_file: there is no file"),
        ("data.xlsx", "sequence-classification reads files that end in .csv, .*, got"),
        ("plain.txt", "reads files that end in .csv"),
        ("broken.jsonl", "cannot be read: .*JSON"),
        ("empty.csv", "the file .* is empty"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, said: str) -> None:
    if name == "empty.csv":
        (tmp_path / name).touch()
    elif name != "missing.csv":
        (tmp_path / name).write_text('{"text": "a", "label": 1}\n{"text": "b" oh', encoding="utf-8")
    with pytest.raises(UserError, match=said):
        classified(train_file=str(tmp_path / name))


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset '.*nowhere' cannot be loaded"):
        classified(dataset=str(tmp_path / "nowhere"))


def test_text_files_are_read_by_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("the cat\nis red\n\nthe dog\n\na bird", encoding="utf-8")
    examples = load_examples(DataArguments(train_file=str(file), validation_fraction=0), causal_lm.TASK)
    assert examples.train["text"][:] == ["the cat\nis red", "the dog", "a bird"]
    assert examples.label_names == []


def test_blocks_hold_all_tokens_in_order_with_an_end_after_each_text(tmp_path: Path) -> None:
    options = DataArguments(
        train_file=write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text, _ in sentences(20)]),
        max_length=8,
        validation_fraction=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(save_gpt2(tmp_path / "gpt2"))
    examples = load_examples(options, causal_lm.TASK)
    blocks = causal_lm.TASK.make_features(examples.train, examples.columns, tokenizer, options)
    assert {len(ids) for ids in blocks["input_ids"]} == {8}
    assert blocks["labels"][:] == blocks["input_ids"][:]
    expected = " ".join(f"{text} [SEP]" for text, _ in sentences(20)).split()
    found = tokenizer.decode([token for ids in blocks["input_ids"] for token in ids]).split()
    assert found == expected[: len(found)]
    assert len(expected) - len(found) < 8


def test_without_packing_each_text_is_one_example(tmp_path: Path) -> None:
    options = DataArguments(
        train_file=write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text, _ in sentences(5)]),
        max_length=4,
        packing=False,
        validation_fraction=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(save_gpt2(tmp_path / "gpt2"))
    features = causal_lm.TASK.make_features(load_examples(options, causal_lm.TASK).train, ["text"], tokenizer, options)
    assert len(features) == 5
    assert max(map(len, features["input_ids"])) == 4


def test_a_rest_is_dropped_unless_it_is_all_there_is() -> None:
    assert pack([[1, 2], [3], [4, 5]], 2) == [[1, 2], [3, 4]]
    assert pack([[1, 2], [3]], 5) == [[1, 2, 3]]
    assert pack([[1, 2]], 2) == [[1, 2]]
    assert pack([], 2) == []
