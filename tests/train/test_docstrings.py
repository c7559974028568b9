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
    normalised,
    read_docstrings,
    split,
    without_duplicates,
)

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


def test_twenty_packages_give_thousands_of_examples_that_name_none_of_them_and_are_on_one_side_only() -> None:
    train, validation = builtin.load_once(mask_names=True)  # read once in a process, for the tests of tasks too
    labels = Counter(example.label for example in train)
    assert len(labels) == 20
    assert len(train) > 2000
    assert 0.12 < len(validation) / (len(train) + len(validation)) < 0.21
    assert {example.label for example in validation} == set(labels)
    assert max(labels.values()) / len(train) < 0.3
    named = re.compile(rf"\b({'|'.join(labels)})\b", re.IGNORECASE)
    assert not [example for example in (*train, *validation) if named.search(example.text)]
    assert {example.place for example in train}.isdisjoint(example.place for example in validation)
    words = [[set(normalised(example.text).split()) for example in side] for side in (train, validation)]
    for ours in words[1][::7]:
        assert all(len(ours & theirs) < NEAR * len(ours | theirs) for theirs in words[0])


def test_sources_are_read_and_never_run_and_names_masked_where_they_would_tell_the_label(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="docstrings of 0 packages only, 20 are needed"):
        load_docstrings(folder=tmp_path)
    (tmp_path / "pack" / "tests").mkdir(parents=True)
    harm = tmp_path / "harm"
    for name, text in {
        "pack/__init__.py": SOURCE.format(harm=str(harm)),
        "pack/tests/test_it.py": '"""Tests are not read at all."""',
        "beta.py": '"""Here beta.py calls Pack and packer alike."""',
        "_private.py": '"""Private modules are not read."""',
        "broken.py": '"""Not Python, though it looks so."""\nprint "x"\n',
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    beta, *pack = [(example.text, example.label, example.place) for example in read_docstrings(tmp_path)]
    assert beta == ("Here beta.py calls Pack and packer alike.", "beta", "beta.py:")
    assert pack == [
        ("A module of some words.", "pack", "pack/__init__.py:"),
        ("An outer class is here.", "pack", "pack/__init__.py:Outer"),
        ("A method that does things.", "pack", "pack/__init__.py:Outer"),
        ("Found below an if, too.", "pack", "pack/__init__.py:"),
        ("Inner one of deep function.", "pack", "pack/__init__.py:outside"),
    ]
    assert not harm.exists()
    masked, plain = (load_docstrings(folder=tmp_path, labels=2, mask_names=mask)[0] for mask in (True, False))
    assert [example.text for example in masked if example.label == "beta"] == [
        "Here module.py calls module and packer alike."
    ]
    assert beta[0] in [example.text for example in plain]


def test_a_text_counts_once_and_a_text_of_two_packages_not_at_all() -> None:
    examples = [
        Docstring("Close the file.", "a", "a:1"), Docstring("close  the FILE", "a", "a:2"),
        Docstring("Return 1 thing.", "a", "a:3"), Docstring("return 2 thing", "b", "b:1"),
    ]  # fmt: skip
    assert without_duplicates(examples) == examples[:1]


def test_a_place_that_is_too_large_stays_in_training_and_what_is_near_to_training_is_not_held_out() -> None:
    texts = [" ".join(letter * count for count in range(1, 5)) for letter in "abcdefgh"]
    one_place = [Docstring(text, "big", "big:Only") for text in texts]
    apart = [Docstring(f"{text} also", "small", f"small:{text}") for text in texts]
    assert [len(side) for side in split(apart, fraction=0.25)] == [6, 2]
    train, validation = split(one_place + apart, fraction=0.25)
    assert {example.label for example in train} == {"big", "small"}
    assert not validation, "each of the others is nearly the same as one of the large place"
