"""A study registers the family's names in transformers; here no test leaves them behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import emo_hf


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    yield
    emo_hf.unregister()
