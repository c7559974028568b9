"""A text data set that every Python has at hand: the docstrings of its standard library.

The task is to tell which top-level package or module a docstring was written for, among the 20 that have the most of
them. It is real prose of many authors, needs no network, and is read with `ast` from the source files: nothing is
imported, nothing is run. The examples depend on the Python version; with the same Python they are always the same.

What keeps it honest:

- A package must not be found by its name. Whole words that are one of the 20 names are replaced by "module", in every
  docstring and not only in the package's own: else a name that stands unmasked would tell where a text is not from.
- A text that occurs more than once in a package counts once. One that occurs in several is dropped: it has no answer.
- Nothing may be on both sides of the split. Kept together are the docstrings of one top-level class or function, and
  near duplicates: texts whose sets of words have a Jaccard similarity of `NEAR` or more, digits made equal, over all
  packages and chained. Files are not kept together: six of the 20 packages are one file (`tarfile`, `turtle`, …).
- Not read: tests, private modules (`_pydecimal`), and what newer Pythons have dropped (`distutils`, `lib2to3`).
"""

from __future__ import annotations

import ast
import math
import random
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

LABELS = 20
NEAR = 0.7
MIN_WORDS = 4
VALIDATION_FRACTION = 0.2
SEED = 0

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

    Returns:
        Training and validation examples, each in an order that depends on the sources only.

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
    pending: list[tuple[ast.AST, str]] = [(tree, "")]
    while pending:
        node, owner = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if not isinstance(node, ast.Module):
                owner = owner or node.name
            text = ast.get_docstring(node)
            if text:
                yield text, owner
        inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]  # none is in those
        pending.extend((child, owner) for child in reversed(inner))


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


def near_duplicates(texts: Sequence[str], threshold: float = NEAR) -> Iterator[tuple[int, int]]:
    """The pairs of texts whose sets of words have at least that Jaccard similarity.

    Two sets can only be that similar if they share one of the rarest words of each, so only the rarest words are
    indexed (prefix filtering); the result is the same as that of comparing all pairs.
    """
    words = [frozenset(normalised(text).split()) for text in texts]
    frequency = Counter(word for own in words for word in own)
    index: dict[str, list[int]] = defaultdict(list)
    for this in sorted(range(len(words)), key=lambda i: (len(words[i]), i)):
        own = words[this]
        candidates: set[int] = set()
        rarest = sorted(own, key=lambda word: (frequency[word], word))
        for word in rarest[: len(own) - math.ceil(threshold * len(own)) + 1]:
            candidates.update(index[word])
            index[word].append(this)
        for other in sorted(candidates):
            shared = len(own & words[other])
            if shared >= threshold * (len(own) + len(words[other]) - shared):
                yield other, this


def split(
    examples: Sequence[Docstring], fraction: float = VALIDATION_FRACTION, seed: int = SEED
) -> tuple[list[Docstring], list[Docstring]]:
    """Divide examples so that each label gives up to that fraction, and what belongs together stays together."""
    families = _families(examples)
    random.Random(seed).shuffle(families)
    room = {label: fraction * count for label, count in Counter(example.label for example in examples).items()}
    held_out: set[int] = set()
    for family in families:
        taken = Counter(examples[i].label for i in family)
        if all(count <= room[label] for label, count in taken.items()):
            held_out.update(family)
            for label, count in taken.items():
                room[label] -= count
    return (
        [example for i, example in enumerate(examples) if i not in held_out],
        [example for i, example in enumerate(examples) if i in held_out],
    )


def _families(examples: Sequence[Docstring]) -> list[list[int]]:
    """Indices of the examples that must stay together: those of one place, and near duplicates, chained."""
    leader = list(range(len(examples)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    first_of_place: dict[str, int] = {}
    for i, example in enumerate(examples):
        leader[find(i)] = find(first_of_place.setdefault(example.place, i))
    for this, other in near_duplicates([example.text for example in examples]):
        leader[find(this)] = find(other)
    families: dict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        families[find(i)].append(i)
    return list(families.values())
