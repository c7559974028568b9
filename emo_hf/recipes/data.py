"""Loads the examples, from a hub dataset, local files or the standard library's docstrings, and splits them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Value, load_dataset

from emo_hf.recipes.arguments import PYTHON_DOCSTRINGS, SEQUENCE_CLASSIFICATION, DataArguments
from emo_hf.recipes.docstrings import load_docstrings
from emo_hf.recipes.errors import RecipeError, one_line
from emo_hf.recipes.labels import label_ids, label_names

# Suffix → loader of `datasets` and its options. Empty cells and words such as "null" stay what the file says.
_CSV = {"keep_default_na": False}
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", _CSV | {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {"sample_by": "paragraph"}),
}


@dataclass(frozen=True)
class Examples:
    """Training and validation examples as they were read.

    Attributes:
        train: what to train on.
        validation: what to evaluate on; None if there is nothing.
        text_columns: one column, or two for pairs.
        label_names: the names of the labels, in the order of their ids; empty for language modelling.
        train_labels, validation_labels: the id of each example's label.
    """

    train: Dataset
    validation: Dataset | None
    text_columns: list[str]
    label_names: list[str]
    train_labels: list[int]
    validation_labels: list[int]

    @property
    def majority_baseline(self) -> float | None:
        """Accuracy on the validation examples of always answering the most frequent training label."""
        if not self.validation_labels:
            return None
        (most_frequent, _), *_ = Counter(self.train_labels).most_common(1)
        return self.validation_labels.count(most_frequent) / len(self.validation_labels)


def load_examples(options: DataArguments, task: str) -> Examples:
    """Load, check, split and thin out the examples, the same on every rank.

    Raises:
        RecipeError: if the data cannot be read or does not fit the task.
    """
    classify = task == SEQUENCE_CLASSIFICATION
    train, validation = _load(options, classify)
    _check_not_empty(train, validation)
    texts = _text_columns(train, options, classify)
    _check_texts(train, texts, "training")
    if validation is not None:
        _check_texts(validation, texts, "validation")
    names: list[str] = []
    train_labels: list[int] = []
    validation_labels: list[int] = []
    if classify:
        names = label_names(train, options.label_column)
        train_labels = label_ids(train, options.label_column, names, "training")
        if validation is not None:
            validation_labels = label_ids(validation, options.label_column, names, "validation")
    if validation is None and options.validation_fraction > 0:
        kept, held_out = _split(len(train), train_labels, options.validation_fraction, options.split_seed)
        train, validation = train.select(kept), train.select(held_out)
        train_labels, validation_labels = _pick(train_labels, kept), _pick(train_labels, held_out)
    train, train_labels = _sample(train, train_labels, options.max_train_samples, options.split_seed)
    if validation is not None:
        validation, validation_labels = _sample(
            validation, validation_labels, options.max_eval_samples, options.split_seed
        )
    return Examples(train, validation, texts, names, train_labels, validation_labels)


def _load(options: DataArguments, classify: bool) -> tuple[Dataset, Dataset | None]:
    if options.dataset == PYTHON_DOCSTRINGS:
        try:
            sides = load_docstrings(mask_names=classify)
        except OSError as error:
            raise RecipeError(f"{PYTHON_DOCSTRINGS}: {one_line(error)}") from error
        label = options.label_column
        train, validation = (Dataset.from_list([{"text": e.text, label: e.label} for e in side]) for side in sides)
        return train, validation
    if options.dataset is not None:
        return _load_dataset(options)
    assert options.train_file is not None
    train = _load_file("train_file", options.train_file, classify)
    if options.validation_file is None:
        return train, None
    return train, _load_file("validation_file", options.validation_file, classify)


def _load_dataset(options: DataArguments) -> tuple[Dataset, Dataset | None]:
    name = str(options.dataset)
    try:
        loaded = load_dataset(name, options.dataset_config)
    except Exception as error:  # a dataset may fail in any way
        hint = f"; the built-in one is {PYTHON_DOCSTRINGS}" if "/" not in name else ""
        raise RecipeError(f"dataset {name!r} cannot be loaded: {_cause(error)}{hint}") from error
    splits = loaded if isinstance(loaded, DatasetDict) else {}
    wanted = options.validation_split or ("validation" if "validation" in splits else None)
    for option, split in (("train_split", options.train_split), ("validation_split", wanted)):
        if split is not None and split not in splits:
            raise RecipeError(f"{option}: dataset {name!r} has no split {split!r}, it has {', '.join(splits)}")
    return splits[options.train_split], splits[wanted] if wanted else None


def _load_file(option: str, name: str, classify: bool) -> Dataset:
    path = Path(name).expanduser()
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2", ".xz", ".zst")]
    kind = _FORMATS.get(suffixes[-1].lower()) if suffixes else None
    if not path.is_file():
        raise RecipeError(f"{option}: there is no file {name!r}")
    if kind is None:
        raise RecipeError(f"{option}: {name!r} is of no known type, its name must end in one of {', '.join(_FORMATS)}")
    if classify and kind[0] == "text":
        raise RecipeError(f"{option}: a text file such as {name!r} has no labels: use CSV or JSON lines")
    try:
        return load_dataset(kind[0], data_files=str(path), split="train", **kind[1])
    except Exception as error:  # pandas, pyarrow and datasets have theirs
        raise RecipeError(f"{option}: {name!r} cannot be read: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    return one_line(error.__cause__ or error).rstrip(".")


def _check_not_empty(train: Dataset, validation: Dataset | None) -> None:
    if len(train) == 0:
        raise RecipeError("there are no training examples")
    if validation is not None and len(validation) == 0:
        raise RecipeError("there are no validation examples")


def _text_columns(train: Dataset, options: DataArguments, classify: bool) -> list[str]:
    columns = options.text_columns
    if columns is None:
        # Files of strings come as `large_string`, hub datasets as `string`.
        strings = [
            name
            for name, feature in train.features.items()
            if isinstance(feature, Value) and feature.dtype in ("string", "large_string")
            if not (classify and name == options.label_column)
        ]
        columns = ["text"] if "text" in strings else strings
        if len(columns) != 1:
            raise RecipeError(f"text_columns is needed: the columns are {', '.join(train.column_names)}")
    for column in columns:
        if column not in train.column_names:
            raise RecipeError(f"text_columns: no column {column!r}, the columns are {', '.join(train.column_names)}")
    if len(columns) > 1 and not classify:
        raise RecipeError(f"text_columns: causal-lm takes one column, got {', '.join(columns)}")
    return list(columns)


def _check_texts(dataset: Dataset, columns: list[str], side: str) -> None:
    for column in columns:
        if column not in dataset.column_names:
            raise RecipeError(f"the {side} examples have no column {column!r}")
        for row, text in enumerate(dataset[column]):
            if text is None:
                raise RecipeError(f"{side} example {row + 1} has no text in column {column!r}")


def _split(count: int, labels: list[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to keep and to hold out, at random; with labels the same share of each, one at least of two or more."""
    by_label: dict[int, list[int]] = defaultdict(list)
    for i in range(count):
        by_label[labels[i] if labels else 0].append(i)
    chooser = random.Random(seed)
    held_out: set[int] = set()
    for _, members in sorted(by_label.items()):
        share = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out.update(chooser.sample(members, share))
    if not held_out:
        raise RecipeError("too few examples to hold some out: give validation data, or validation_fraction 0")
    return [i for i in range(count) if i not in held_out], sorted(held_out)


def _sample(dataset: Dataset, labels: list[int], limit: int | None, seed: int) -> tuple[Dataset, list[int]]:
    if limit is None or limit >= len(dataset):
        return dataset, labels
    chosen = sorted(random.Random(seed).sample(range(len(dataset)), limit))
    return dataset.select(chosen), _pick(labels, chosen)


def _pick(labels: list[int], indices: list[int]) -> list[int]:
    return [labels[i] for i in indices] if labels else []
