"""The built-in data set: real, the same every time, and nothing of the training side on the validation side."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from emo_hf.train import builtin
from emo_hf.train.docstrings import (
    NEAR,
    Docstring,
    load_docstrings,
    near_to_any,
    normalised,
    read_docstrings,
    split,
    without_duplicates,
)

Sides = tuple[list[Docstring], list[Docstring]]


SOURCE = '''\
"""A module of some words."""
open({harm!r}, "w")

class Outer:
    """An outer class is here."""

    def method(self):
        """A method that does things."""

if True:
    def deep():
        """Found below an if, too."""

def outside():
    def inner():
        """Inner one of deep function."""

def short():
    """Too short."""
'''


@pytest.fixture(scope="module")
def sides() -> Sides:
    return builtin.load_once(mask_names=True)  # read once in a process, for the tests of tasks too


def test_twenty_packages_give_thousands_of_examples(sides: Sides) -> None:
    train, validation = sides
    labels = Counter(example.label for example in train)
    assert len(labels) == 20
    assert len(train) > 2000
    assert 0.12 < len(validation) / (len(train) + len(validation)) < 0.21
    assert {example.label for example in validation} == set(labels)
    assert max(labels.values()) / len(train) < 0.3


def test_no_text_no_class_no_function_and_nothing_nearly_the_same_is_on_both_sides(sides: Sides) -> None:
    train, validation = sides
    assert {example.place for example in train}.isdisjoint(example.place for example in validation)
    words = [[set(normalised(example.text).split()) for example in side] for side in sides]
    for ours in words[1][::7]:
        assert all(len(ours & theirs) < NEAR * len(ours | theirs) for theirs in words[0])


def test_what_is_near_is_found_as_by_comparing_the_sets_of_words() -> None:
    others = ["one two three four", "five six seven"]
    texts = ["one two three nine", "one two three four five", "Four, three; two: ONE", "seven 1 2", "none of them"]
    assert near_to_any(texts, others, 0.6) == [True, True, True, False, False]
    assert near_to_any(texts, others, 0.8) == [False, True, True, False, False]


def test_no_package_is_named_in_any_text(sides: Sides) -> None:
    labels = {example.label for side in sides for example in side}
    names = re.compile(rf"\b({'|'.join(labels)})\b", re.IGNORECASE)
    assert not [example for side in sides for example in side if names.search(example.text)]


def test_names_are_masked_everywhere_for_classification_and_kept_in_plain_prose(tmp_path: Path) -> None:
    (tmp_path / "alpha.py").write_text('"""What alpha does, unlike Beta or alphabet."""', encoding="utf-8")
    (tmp_path / "beta.py").write_text('"""Here beta.py calls nothing at all."""', encoding="utf-8")
    masked, plain = (load_docstrings(folder=tmp_path, labels=2, mask_names=mask)[0] for mask in (True, False))
    assert [example.text for example in plain] == [
        "What alpha does, unlike Beta or alphabet.",
        "Here beta.py calls nothing at all.",
    ]
    assert [example.text for example in masked] == [
        "What module does, unlike module or alphabet.",
        "Here module.py calls nothing at all.",
    ]


def test_sources_are_read_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "pack" / "tests").mkdir(parents=True)
    harm = tmp_path / "harm"
    (tmp_path / "pack" / "__init__.py").write_text(SOURCE.format(harm=str(harm)), encoding="utf-8")
    (tmp_path / "pack" / "tests" / "test_it.py").write_text('"""Tests are not read at all."""', encoding="utf-8")
    (tmp_path / "_private.py").write_text('"""Private modules are not read."""', encoding="utf-8")
    (tmp_path / "broken.py").write_text('"""Not Python, though it looks so."""\nprint "x"\n', encoding="utf-8")
    found = [(example.text, example.label, example.place) for example in read_docstrings(tmp_path)]
    assert found == [
        ("A module of some words.", "pack", "pack/__init__.py:"),
        ("An outer class is here.", "pack", "pack/__init__.py:Outer"),
        ("A method that does things.", "pack", "pack/__init__.py:Outer"),
        ("Found below an if, too.", "pack", "pack/__init__.py:"),
        ("Inner one of deep function.", "pack", "pack/__init__.py:outside"),
    ]
    assert not harm.exists()


def test_a_text_counts_once_and_a_text_of_two_packages_not_at_all() -> None:
    examples = [
        Docstring("Close the file.", "a", "a:1"),
        Docstring("close  the FILE", "a", "a:2"),
        Docstring("Return 1 thing.", "a", "a:3"),
        Docstring("return 2 thing", "b", "b:1"),
    ]
    assert without_duplicates(examples) == examples[:1]


def test_a_place_that_is_too_large_stays_in_training_and_what_is_near_to_training_is_not_held_out() -> None:
    texts = [" ".join(letter * count for count in range(1, 5)) for letter in "abcdefgh"]
    one_place = [Docstring(text, "big", "big:Only") for text in texts]
    apart = [Docstring(f"{text} also", "small", f"small:{text}") for text in texts]
    train, validation = split(apart, fraction=0.25)
    assert len(validation) == 2
    assert len(train) == 6
    train, validation = split(one_place + apart, fraction=0.25)
    assert {example.label for example in train} == {"big", "small"}
    assert not validation, "each of the others is nearly the same as one of the large place"


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="docstrings of 0 packages only, 20 are needed"):
        load_docstrings(folder=tmp_path)
