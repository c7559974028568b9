"""Models and data that the tests of `emo-hf train` read, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

import emo_hf
from tests.train.tiny import save_bert, save_gpt2, topics_csv


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all tests, in which `datasets` keeps what it has read."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


@pytest.fixture(autouse=True)
def _nothing_stays_registered(shared: Path) -> Iterator[None]:
    yield
    emo_hf.unregister()


@pytest.fixture(scope="session")
def bert(shared: Path) -> str:
    return save_bert(shared / "bert")


@pytest.fixture(scope="session")
def gpt2(shared: Path) -> str:
    return save_gpt2(shared / "gpt2")


@pytest.fixture(scope="session")
def topics(shared: Path) -> str:
    return topics_csv(shared)
