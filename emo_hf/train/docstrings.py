"""A text data set that every Python has at hand: the docstrings of its standard library.

The task is to tell which top-level package or module a docstring was written for, among the 20 that have the most of
them. It is real prose of many authors, needs no network, and is read with `ast` from the source files: nothing is
imported, nothing is run. The examples depend on the Python version; with the same Python they are always the same.

What keeps it honest:

- A package must not be found by its name. Whole words that are one of the 20 names are replaced by "module", in every
  docstring and not only in the package's own: else a name that stands unmasked would tell where a text is not from.
- A text that occurs more than once in a package counts once. One that occurs in several is dropped: it has no answer.
- The docstrings of one top-level class or function are on one side of the split, and what is nearly the same as a
  training text is not held out.
- Not read: tests, private modules (`_pydecimal`), and what newer Pythons have dropped (`distutils`, `lib2to3`).
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

LABELS = 20
NEAR = 0.7
MIN_WORDS = 4
VALIDATION_FRACTION = 0.2

_NOT_READ = frozenset({"distutils", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "test"})
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})


@dataclass(frozen=True)
class Docstring:
    """One example.

    Attributes:
        text: the docstring, indentation removed.
        label: top-level package or module that it was written for.
        place: file and top-level class or function that it belongs to, such as `asyncio/events.py:Handle`.
    """

    text: str
    label: str
    place: str


def load_docstrings(
    *, mask_names: bool = True, folder: str | Path | None = None, labels: int = LABELS
) -> tuple[list[Docstring], list[Docstring]]:
    """Read the standard library and split its docstrings into training and validation examples.

    Args:
        mask_names: replace the names of the packages, as classification needs it; False for plain prose.
        folder: where the sources are; the running Python's standard library if None.
        labels: how many packages, the most frequent first.

    Raises:
        FileNotFoundError: if the folder holds too few sources, as with a Python that ships compiled files only.
    """
    root = Path(folder) if folder is not None else Path(sysconfig.get_path("stdlib"))
    found = without_duplicates(read_docstrings(root))
    counts = Counter(example.label for example in found)
    kept = sorted(counts, key=lambda label: (-counts[label], label))[:labels]
    if len(kept) < labels:
        raise FileNotFoundError(f"{root} holds docstrings of {len(kept)} packages only, {labels} are needed")
    examples = [example for example in found if example.label in kept]
    if mask_names:
        names = re.compile(rf"\b({'|'.join(map(re.escape, sorted(kept)))})\b", re.IGNORECASE)
        # Masked, texts may be equal that were not.
        examples = without_duplicates(replace(example, text=names.sub("module", example.text)) for example in examples)
    return split(examples)


def read_docstrings(root: Path) -> Iterator[Docstring]:
    """Every docstring of at least `MIN_WORDS` words below a folder of packages and modules, in a fixed order."""
    for entry in sorted(root.iterdir()):
        label = entry.name.removesuffix(".py")
        if entry.name in _NOT_READ or label.startswith("_") or not label.isidentifier():
            continue
        files = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry] if entry.suffix == ".py" else []
        for file in files:
            path = file.relative_to(root)
            if _TEST_FOLDERS.isdisjoint(path.parts):
                for text, owner in _docstrings_of(file):
                    if len(text.split()) >= MIN_WORDS:
                        yield Docstring(text, label, f"{path.as_posix()}:{owner}")


def _docstrings_of(file: Path) -> Iterator[tuple[str, str]]:
    """(docstring, name of the top-level class or function around it) of a file, "" standing for the module itself."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # templates and samples of broken code are part of the standard library
        return
    for top in (tree, *tree.body):
        for node in (top,) if top is tree else ast.walk(top):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield text, getattr(top, "name", "")


def normalised(text: str) -> str:
    """A text as it is compared: lower case, words only, every digit 0."""
    return " ".join(re.findall(r"\w+", re.sub(r"\d", "0", text.lower())))


def without_duplicates(examples: Iterable[Docstring]) -> list[Docstring]:
    """Each text once; texts that occur in several packages not at all."""
    first: dict[str, Docstring] = {}
    ambiguous: set[str] = set()
    for example in examples:
        key = normalised(example.text)
        if first.setdefault(key, example).label != example.label:
            ambiguous.add(key)
    return [example for key, example in first.items() if key not in ambiguous]


def split(
    examples: Sequence[Docstring], fraction: float = VALIDATION_FRACTION
) -> tuple[list[Docstring], list[Docstring]]:
    """Hold out whole places, at random, until each label has given up to that fraction of its examples."""
    places: dict[str, list[Docstring]] = defaultdict(list)
    for example in examples:
        places[example.place].append(example)
    room = {label: fraction * count for label, count in Counter(example.label for example in examples).items()}
    order = list(places)
    random.Random(0).shuffle(order)
    held_out: set[str] = set()
    for place in order:
        label, count = places[place][0].label, len(places[place])
        if count <= room[label]:
            held_out.add(place)
            room[label] -= count
    train = [example for example in examples if example.place not in held_out]
    validation = [example for example in examples if example.place in held_out]
    near = near_to_any([example.text for example in validation], [example.text for example in train])
    return train, [example for example, is_near in zip(validation, near, strict=True) if not is_near]


def near_to_any(texts: Sequence[str], others: Sequence[str], threshold: float = NEAR) -> list[bool]:
    """Whether a text has |A ∩ B| ≥ threshold·|A ∪ B| with one of the others, A and B being their sets of words."""
    words = [set(normalised(text).split()) for text in (*texts, *others)]
    column = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    has = torch.zeros(len(words), len(column))
    for row, own in enumerate(words):
        has[row, [column[word] for word in own]] = 1.0
    mine, theirs = has[: len(texts)], has[len(texts) :]
    shared = mine @ theirs.T
    either = mine.sum(1, keepdim=True) + theirs.sum(1) - shared
    near: list[bool] = (shared >= threshold * either - 1e-3).any(1).tolist()
    return near
