"""The examples of a task: read, checked, split and thinned out."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets import Dataset, Value

from emo_hf.train.errors import RecipeError
from emo_hf.train.files import read_sides

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments
    from emo_hf.train.tasks.task import Task


@dataclass(frozen=True)
class Examples:
    """Training and validation examples as they were read.

    Attributes:
        train: what to train on.
        validation: what to evaluate on; None if there is nothing.
        columns: the columns that the task reads, in its order.
        label_column: the one with labels or tags; None where a task has none.
        label_names: the names of the labels, in the order of their ids; empty where there are none.
        train_labels, validation_labels: the id of each example's label; empty where an example has not exactly one.
    """

    train: Dataset
    validation: Dataset | None
    columns: list[str]
    label_column: str | None
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


def load_examples(options: DataArguments, task: Task) -> Examples:
    """Load, check, split and thin out the examples, the same on every rank.

    Raises:
        RecipeError: if the data cannot be read or does not fit the task.
    """
    train, validation = read_sides(options, task)
    _check_not_empty(train, validation)
    columns = task.find_columns(train, options)
    for dataset, side in ((train, "training"), (validation, "validation")):
        if dataset is not None:
            check_columns(dataset, columns, side)
            task.check_rows(dataset, columns, side)
    label_column = task.find_label_column(train, options)
    names: list[str] = []
    train_labels: list[int] = []
    validation_labels: list[int] = []
    if label_column is not None:
        names = task.label_names(train, label_column)
        train_labels = task.label_ids(train, label_column, names, "training")
        if validation is not None:
            validation_labels = task.label_ids(validation, label_column, names, "validation")
    if validation is None and options.validation_fraction > 0:
        kept, held_out = _split(len(train), train_labels, options.validation_fraction, options.split_seed)
        train, validation = train.select(kept), train.select(held_out)
        train_labels, validation_labels = _pick(train_labels, kept), _pick(train_labels, held_out)
    train, train_labels = _sample(train, train_labels, options.max_train_samples, options.split_seed)
    if validation is not None:
        validation, validation_labels = _sample(
            validation, validation_labels, options.max_eval_samples, options.split_seed
        )
    return Examples(train, validation, columns, label_column, names, train_labels, validation_labels)


def text_column(train: Dataset, not_this: str | None) -> str:
    """The column with the text: "text", or the only one with strings that is not `not_this`.

    Raises:
        RecipeError: if there are others, or none.
    """
    # Files of strings come as `large_string`, hub datasets as `string`.
    strings = [
        name
        for name, feature in train.features.items()
        if isinstance(feature, Value) and feature.dtype in ("string", "large_string") and name != not_this
    ]
    found = ["text"] if "text" in strings else strings
    if len(found) != 1:
        raise RecipeError(f"text_columns is needed: the columns are {', '.join(train.column_names)}")
    return found[0]


def check_columns(dataset: Dataset, columns: list[str], side: str) -> None:
    """Refuse data that lack one of the columns.

    Raises:
        RecipeError: with the columns that there are.
    """
    for column in columns:
        if column not in dataset.column_names:
            there = ", ".join(dataset.column_names)
            where = f" in the {side} examples" if side != "training" else ""
            raise RecipeError(f"text_columns: no column {column!r}{where}, the columns are {there}")


def check_filled(dataset: Dataset, columns: list[str], side: str) -> None:
    """Refuse an example with a hole.

    Raises:
        RecipeError: with the number of its row.
    """
    for column in columns:
        for row, text in enumerate(dataset[column]):
            if text is None:
                raise RecipeError(f"{side} example {row + 1} has no text in column {column!r}")


def _check_not_empty(train: Dataset, validation: Dataset | None) -> None:
    if len(train) == 0:
        raise RecipeError("there are no training examples")
    if validation is not None and len(validation) == 0:
        raise RecipeError("there are no validation examples")


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
