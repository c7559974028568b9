"""Labels as strings, integers or a dataset's own classes, and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from datasets import ClassLabel, Dataset

from emo_hf.train.errors import RecipeError


def label_names(train: Dataset, column: str) -> list[str]:
    """The names of all labels, in the order of their ids.

    They are what the dataset declares, or else the labels that the training examples have, numbers in their order.

    Raises:
        RecipeError: if the column is missing, holds something else than labels, or the same label everywhere.
    """
    found = {label_key(value, row, "training") for row, value in enumerate(labels_of(train, column, "training"))}
    if len(found) < 2:
        raise RecipeError(f"all training examples have the label {found.pop()!r}: there is nothing to tell apart")
    feature = train.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return sorted_names(found)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Integers in their order, all else in that of the alphabet."""
    found = list(names)
    return sorted(found, key=int) if all(map(_is_integer, found)) else sorted(found)


def _is_integer(key: str) -> bool:
    return key.removeprefix("-").isdecimal()


def label_ids(dataset: Dataset, column: str, names: list[str], side: str) -> list[int]:
    """The label of each example as an index into `names`.

    Raises:
        RecipeError: if an example has no label, or one that `names` does not have.
    """
    ids = {name: i for i, name in enumerate(names)}
    found = []
    for row, value in enumerate(labels_of(dataset, column, side)):
        key = label_key(value, row, side)
        if key not in ids:
            known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise RecipeError(
                f"{side} example {row + 1} has the label {key!r}, which no training example has (labels: {known})"
            )
        found.append(ids[key])
    return found


def labels_of(dataset: Dataset, column: str, side: str) -> Iterator[Any]:
    """The labels as they stand in the column, or the names that the dataset declares for them.

    Raises:
        RecipeError: if there is no such column.
    """
    if column not in dataset.column_names:
        columns = ", ".join(dataset.column_names)
        raise RecipeError(f"label_column: the {side} examples have no column {column!r}, the columns are {columns}")
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return (feature.names[value] if value is not None and value >= 0 else None for value in dataset[column])
    return iter(dataset[column])


def label_key(value: Any, row: int, side: str) -> str:
    """A label as text.

    Raises:
        RecipeError: if it is none.
    """
    if value is None or value == "":
        raise RecipeError(f"{side} example {row + 1} has no label")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # integers beside empty cells are read as floats
    if not isinstance(value, (str, int)):
        raise RecipeError(f"{side} example {row + 1} has the label {value!r}: labels are strings or integers")
    return str(value)
