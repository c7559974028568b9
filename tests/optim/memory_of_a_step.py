"""The memory that a step of an optimizer takes beyond what it holds, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
from pathlib import Path

import torch
from torch import nn

from emo_hf import EmoOptimizer
from tests.emo_cases import OF_EACH_RULE, rule_of

PEAK = Path("/proc/self/clear_refs")
"""Where a process asks that its peak of resident memory be counted anew."""

M_MMAP_THRESHOLD = -3
"""The option of glibc's `mallopt` for the size from which on memory is the system's again when it is freed."""

ROW = 1024
"""Numbers in a row of a parameter."""

WAYS: dict[str, tuple[int, int, int]] = {
    "native": (48, 1024, 4),
    "native maximize": (48, 1024, 72),
    "foreach": (1, 48 * 1024, 72),
}
"""Options → how many parameters of how many rows, which are 192 MiB, and the MiB that a step of them may take."""

MEASURED = {
    f"{cls.__name__} {way}": (cls, way)
    for cls in OF_EACH_RULE
    for way in WAYS
    if way.split()[0] in rule_of(cls).implementations
}


def measure(file: str) -> None:
    """Write down by how many KiB the second step's peak is above what was resident before it."""
    torch.set_num_threads(2)
    give_back_what_is_freed()
    found = {}
    for name, (cls, way) in MEASURED.items():
        count, rows, _ = WAYS[way]
        options = dict.fromkeys(way.split(), True)
        small = with_gradients(cls, count, 1, options)
        for _ in range(3):  # the code of a step is in memory from here on
            take_a_step(small)
        optimizer = with_gradients(cls, count, rows, options)
        take_a_step(optimizer)
        gc.collect()
        PEAK.write_text("5")
        before = resident("VmRSS")
        take_a_step(optimizer)
        found[name] = resident("VmHWM") - before
    Path(file).write_text(json.dumps(found))


def give_back_what_is_freed() -> None:
    """Have this process return each tensor's memory when it is freed.

    Free memory within a heap hides what a step takes, and the pages of pieces that follow each other all count there.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)


def resident(field: str) -> int:
    """A figure of this process's memory by its name in `/proc/self/status`, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def with_gradients(cls: type[EmoOptimizer], count: int, rows: int, options: dict[str, bool]) -> EmoOptimizer:
    params = [nn.Parameter(torch.ones(rows, ROW)) for _ in range(count)]
    for param in params:
        param.grad = torch.ones_like(param)
    return cls(params, **options)


def take_a_step(optimizer: EmoOptimizer) -> None:
    optimizer.observe(1.0)
    optimizer.step()
