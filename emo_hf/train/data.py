"""The examples of a task: read, checked, their labels turned into ids, split and thinned out."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset

from emo_hf.cli_errors import UserError, saying

if TYPE_CHECKING:
    from emo_hf.train.options import DataArguments
    from emo_hf.train.tasks.task import Task

LABELS = "labels"
"""The column with the ids of the labels, under the name of the models' argument."""

Reader = Callable[[Path], Dataset]


def _read(kind: str, path: Path, **options: Any) -> Dataset:
    return load_dataset(kind, data_files=str(path), split="train", **options)


# Empty cells and words such as "null" stay what the file says.
TABLES: Mapping[str, Reader] = {
    ".csv": partial(_read, "csv", keep_default_na=False),
    ".tsv": partial(_read, "csv", keep_default_na=False, sep="\t"),
    ".json": partial(_read, "json"),
    ".jsonl": partial(_read, "json"),
    ".parquet": partial(_read, "parquet"),
}
"""End of a file's name → what reads it, for files with columns."""

TABLES_AND_TEXT: Mapping[str, Reader] = {**TABLES, ".txt": partial(_read, "text", sample_by="paragraph")}


@dataclass(frozen=True)
class Examples:
    """Training and validation examples: the columns that the task reads, and `labels` where it has such.

    Attributes:
        train: what to train on.
        validation: what to evaluate on; None if there is nothing.
        columns: the columns that the task reads, in its order.
        label_names: the names of the labels, in the order of their ids; empty where there are none.
    """

    train: Dataset
    validation: Dataset | None
    columns: list[str]
    label_names: list[str]

    @property
    def majority_baseline(self) -> float | None:
        """Accuracy on the validation examples of always answering the most frequent training label."""
        if self.validation is None or not _has_one_label_each(self.validation):
            return None
        (most_frequent, _), *_ = Counter(self.train[LABELS]).most_common(1)
        return list(self.validation[LABELS]).count(most_frequent) / len(self.validation)


def load_examples(options: DataArguments, task: Task) -> Examples:
    """Load, check, split and thin out the examples, the same on every rank."""
    train, validation = _read_sides(options, task)
    there = [name for name in task.label_columns if name in train.column_names]
    label_column = options.label_column or next(iter([*there, *task.label_columns]), None)
    columns = options.text_columns or list(task.columns)
    if options.text_columns is None and columns == ["text"]:
        columns = [_text_column(train, label_column)]
    names: list[str] = []
    sides: list[Any] = [None, None]
    for i, (dataset, side) in enumerate(((train, "training"), (validation, "validation"))):
        if dataset is None:
            continue
        if len(dataset) == 0:
            raise UserError(f"there are no {side} examples")
        if missing := [column for column in columns if column not in dataset.column_names]:
            columns_are = f"the columns are {', '.join(dataset.column_names)}"
            raise UserError(f"text_columns: no column {missing[0]!r} in the {side} examples, {columns_are}")
        task.check_rows(dataset, columns, side)
        sides[i] = dataset.select_columns(columns)
        if task.label_columns:
            labels = read_labels(dataset, str(label_column), side, tags=task.tags)
            names = names or _classes(train, str(label_column)) or _names(labels)
            ids = _ids(labels, names, side)
            sides[i] = sides[i].add_column(LABELS, ids if task.tags else [only for (only,) in ids])
    train, validation = sides
    if validation is None and options.validation_fraction > 0:
        kept, held_out = _split(train, options.validation_fraction, options.split_seed)
        train, validation = train.select(kept), train.select(held_out)
    train = _sample(train, options.max_train_samples, options.split_seed)
    validation = validation and _sample(validation, options.max_eval_samples, options.split_seed)
    return Examples(train, validation, columns, names)


def _read_sides(options: DataArguments, task: Task) -> tuple[Dataset, Dataset | None]:
    """What to train on, and what to evaluate on where that is given."""
    if options.train_file is not None:
        train = _load_file("train_file", options.train_file, task)
        given = options.validation_file
        return train, None if given is None else _load_file("validation_file", given, task)
    name = str(options.dataset)
    if name in task.builtin:
        with saying(f"{name}: ", OSError):
            train, validation = task.builtin[name]()
        return Dataset.from_list(train), Dataset.from_list(validation)
    ours = "" if "/" in name else f"; built in for {task.name}: {', '.join(task.builtin) or 'nothing'}"
    with saying(f"dataset {name!r} cannot be loaded{ours}: "):
        loaded = load_dataset(name, options.dataset_config)
    splits = loaded if isinstance(loaded, DatasetDict) else {}
    wanted = options.validation_split or ("validation" if "validation" in splits else None)
    for option, split in (("train_split", options.train_split), ("validation_split", wanted)):
        if split is not None and split not in splits:
            raise UserError(f"{option}: dataset {name!r} has no split {split!r}, it has {', '.join(splits)}")
    return splits[options.train_split], splits[wanted] if wanted else None


def _load_file(option: str, name: str, task: Task) -> Dataset:
    path = Path(name).expanduser()
    end = (path.stem if path.suffix in (".gz", ".bz2", ".xz", ".zst") else path.name).lower()
    reader = next((reader for suffix, reader in task.formats.items() if end.endswith(suffix)), None)
    if not path.is_file():
        raise UserError(f"{option}: there is no file {name!r}")
    if path.stat().st_size == 0:
        raise UserError(f"{option}: the file {name!r} is empty")
    if reader is None:
        raise UserError(f"{option}: {task.name} reads files that end in {', '.join(task.formats)}, got {name!r}")
    with saying(f"{option}: {name!r} cannot be read: "):
        return reader(path)


def _text_column(train: Dataset, label_column: str | None) -> str:
    """The column "text", or the only one with strings beside the labels."""
    # Files of strings come as `large_string`, hub datasets as `string`.
    strings = [
        name
        for name, feature in train.features.items()
        if isinstance(feature, Value) and feature.dtype in ("string", "large_string") and name != label_column
    ]
    found = ["text"] if "text" in strings else strings
    if len(found) != 1:
        raise UserError(f"text_columns is needed: the columns are {', '.join(train.column_names)}")
    return found[0]


def read_labels(dataset: Dataset, column: str, side: str, *, tags: bool) -> list[list[str]]:
    """The names of each example's labels: one, or one for each word (`tags`)."""
    if column not in dataset.column_names:
        columns = ", ".join(dataset.column_names)
        raise UserError(f"label_column: the {side} examples have no column {column!r}, the columns are {columns}")
    classes, found = _classes(dataset, column), []
    for row, value in enumerate(dataset[column], start=1):
        if tags and not isinstance(value, list):
            raise UserError(f"{side} example {row}: column {column!r} must hold a list of tags")
        with saying(f"{side} example {row} has ", ValueError):
            found.append([_label(each, classes) for each in (value if tags else [value])])
    return found


def _label(value: Any, classes: list[str] | None) -> str:
    if classes is not None:
        value = classes[value] if value is not None and value >= 0 else None
    if value is None or value == "":
        raise ValueError("no label")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # integers beside empty cells are read as floats
    if not isinstance(value, (str, int)):
        raise ValueError(f"the label {value!r}: labels are strings or integers")
    return str(value)


def _classes(dataset: Dataset, column: str) -> list[str] | None:
    """The names of the classes that a dataset declares."""
    feature = dataset.features[column]
    declared = getattr(feature, "feature", feature)
    return list(declared.names) if isinstance(declared, ClassLabel) else None


def _names(labels: list[list[str]]) -> list[str]:
    """The labels that the training examples have, numbers in their order."""
    found = sorted({name for label in labels for name in label})
    if len(found) < 2:
        raise UserError(f"all training examples have the label {found}: there is nothing to tell apart")
    are_numbers = all(name.removeprefix("-").isdecimal() for name in found)
    return sorted(found, key=int) if are_numbers else found


def _ids(labels: list[list[str]], names: list[str], side: str) -> list[list[int]]:
    ids = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(labels, start=1):
        if unknown := sorted(set(label) - ids.keys()):
            raise UserError(
                f"{side} example {row} has the label {unknown[0]!r}, which no training example has "
                f"(labels: {', '.join(names[:20])}{', …' if len(names) > 20 else ''})"
            )
    return [[ids[name] for name in label] for label in labels]


def _has_one_label_each(dataset: Dataset) -> bool:
    return LABELS in dataset.column_names and isinstance(dataset.features[LABELS], Value)


def _split(dataset: Dataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to keep and to hold out, at random; with labels the same share of each, one at least of two or more."""
    by_label: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(dataset[LABELS] if _has_one_label_each(dataset) else [0] * len(dataset)):
        by_label[label].append(i)
    chooser = random.Random(seed)
    held_out: set[int] = set()
    for _, members in sorted(by_label.items()):
        held_out.update(chooser.sample(members, min(max(round(fraction * len(members)), 1), len(members) - 1)))
    if not held_out:
        raise UserError("too few examples to hold some out: give validation data, or validation_fraction 0")
    return [i for i in range(len(dataset)) if i not in held_out], sorted(held_out)


def _sample(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.select(sorted(random.Random(seed).sample(range(len(dataset)), limit)))
