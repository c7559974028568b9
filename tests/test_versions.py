"""The versions that are stated, pinned and installed are the same."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from emo_hf.trainer.registry import SUPPORTED_TRANSFORMERS

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")

ROOT = Path(__file__).parent.parent
ANY = "EMO_HF_ANY_VERSIONS"
"""Environment variable: set where the tests run with other versions on purpose, such as the newest ones."""

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
PINNED = {
    canonicalize_name(name): Version(number)
    for name, number in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
}


def requirements(*extras: str) -> dict[str, Requirement]:
    """What some extras ask for by themselves, by name, without what they take from each other."""
    read = [Requirement(line) for extra in extras for line in EXTRAS[extra]]
    return {canonicalize_name(each.name): each for each in read if canonicalize_name(each.name) != "emo-hf"}


def test_the_range_of_transformers_that_is_stated_is_the_one_that_is_asked_for_and_tested() -> None:
    oldest, newest = SUPPORTED_TRANSFORMERS.split(" to ")
    pinned = PINNED["transformers"]
    assert newest == f"{pinned.major}.{pinned.minor}", "the newest version that is named is not the one that is tested"
    asked_for = requirements("hf")["transformers"].specifier
    assert f">={oldest}" in map(str, asked_for)
    assert pinned in asked_for


def test_every_package_that_the_tests_ask_for_is_pinned_within_its_range() -> None:
    for name, asked in requirements(*EXTRAS).items():
        if any(str(each).startswith("==") for each in asked.specifier):
            continue
        assert name in PINNED, f"constraints.txt does not say which {name} this checkout is tested with"
        assert PINNED[name] in asked.specifier, f"{name} {PINNED[name]} is pinned, and {asked} is asked for"


@pytest.mark.skipif(bool(os.environ.get(ANY)), reason=f"{ANY} is set: other versions are wanted")
def test_what_is_installed_is_what_is_pinned() -> None:
    other = []
    for name, pinned in PINNED.items():
        try:
            installed = Version(version(name))
        except PackageNotFoundError:
            continue  # such as Triton, where it has no wheels; a test that needs it says so
        if installed.base_version != pinned.base_version:
            other.append(f"{name} {installed} for {pinned}")
    assert not other, f"not as in constraints.txt: {', '.join(other)}. Install with -c constraints.txt, or set {ANY}=1"
