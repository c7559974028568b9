"""accelerate and transformers as they are in a process of their own, around tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

import emo_hf
from emo_hf.integrations import accelerate as loss_tap


@pytest.fixture
def registered() -> Iterator[None]:
    emo_hf.register()
    yield
    emo_hf.unregister()


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its state in singletons; the tap is taken away so that each test has to put it in place."""
    _take_away()
    yield
    _take_away()


def _take_away() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    loss_tap.uninstall()
    loss_tap._switched_off = False
