"""Registration around every test of the Trainer's side."""

from __future__ import annotations

import pytest

from tests.integrations.conftest import fresh_accelerate, registered

__all__ = ["fresh_accelerate", "registered"]


@pytest.fixture(autouse=True)
def always_registered(registered: None) -> None:
    """Without each test's asking."""
