"""What tests of losses in the Trainer need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import emo_hf


@pytest.fixture
def registered() -> Iterator[None]:
    emo_hf.register()
    yield
    emo_hf.unregister()
