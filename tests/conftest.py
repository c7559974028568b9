"""Settings for all tests: the same examples every time, and no more threads than small tensors can use."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait take no time from other processes

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that a test starts compiles the package anew

import pytest
import torch
from hypothesis import settings

settings.register_profile("emo_hf", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("emo_hf")
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what has been imported out of garbage collection: each Trainer run asks for one, and it took 0.4 s."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no process waits for another at the end; modules stay together."""
    long_modules = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long_modules)
