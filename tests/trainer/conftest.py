"""Registration around every test of the Trainer's side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import emo_hf


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    emo_hf.register()
    yield
    emo_hf.unregister()
