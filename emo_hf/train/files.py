"""Reads training and validation data: a task's built-in data, a hub dataset or folder, or local files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict, load_dataset

from emo_hf.train.errors import RecipeError, one_line

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments
    from emo_hf.train.tasks.task import Task

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

TEXT = ".txt"
TABLES_AND_TEXT: Mapping[str, Reader] = {**TABLES, TEXT: partial(_read, "text", sample_by="paragraph")}


def read_sides(options: DataArguments, task: Task) -> tuple[Dataset, Dataset | None]:
    """What to train on, and what to evaluate on where that is given.

    Raises:
        RecipeError: if it cannot be read.
    """
    if options.dataset is not None and options.dataset in task.builtin:
        try:
            train, validation = task.builtin[options.dataset]()
        except OSError as error:
            raise RecipeError(f"{options.dataset}: {one_line(error)}") from error
        return Dataset.from_list(train), Dataset.from_list(validation)
    if options.dataset is not None:
        return _load_dataset(options, task)
    assert options.train_file is not None
    train = _load_file("train_file", options.train_file, task)
    if options.validation_file is None:
        return train, None
    return train, _load_file("validation_file", options.validation_file, task)


def _load_dataset(options: DataArguments, task: Task) -> tuple[Dataset, Dataset | None]:
    name = str(options.dataset)
    try:
        loaded = load_dataset(name, options.dataset_config)
    except Exception as error:  # a dataset may fail in any way
        ours = f"; built in for {task.name}: {', '.join(task.builtin) or 'nothing'}" if "/" not in name else ""
        raise RecipeError(f"dataset {name!r} cannot be loaded: {_cause(error)}{ours}") from error
    splits = loaded if isinstance(loaded, DatasetDict) else {}
    wanted = options.validation_split or ("validation" if "validation" in splits else None)
    for option, split in (("train_split", options.train_split), ("validation_split", wanted)):
        if split is not None and split not in splits:
            raise RecipeError(f"{option}: dataset {name!r} has no split {split!r}, it has {', '.join(splits)}")
    return splits[options.train_split], splits[wanted] if wanted else None


def _load_file(option: str, name: str, task: Task) -> Dataset:
    path = Path(name).expanduser()
    packed = path.suffix in (".gz", ".bz2", ".xz", ".zst")
    end = (path.stem if packed else path.name).lower()
    reader = next((reader for suffix, reader in task.formats.items() if end.endswith(suffix)), None)
    if not path.is_file():
        raise RecipeError(f"{option}: there is no file {name!r}")
    if reader is None and end.endswith(TEXT):
        lacks = "labels" if task.label_columns else "columns"
        raise RecipeError(f"{option}: a text file such as {name!r} has no {lacks}: use CSV or JSON lines")
    if reader is None:
        known = ", ".join(task.formats)
        raise RecipeError(f"{option}: {name!r} is of no known type, its name must end in one of {known}")
    try:
        return reader(path)
    except RecipeError as error:
        raise RecipeError(f"{option}: {error}") from error
    except Exception as error:  # pandas, pyarrow and datasets have theirs
        raise RecipeError(f"{option}: {name!r} cannot be read: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    return one_line(error.__cause__ or error).rstrip(".")
