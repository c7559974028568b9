"""The memory that a step of an optimizer takes beyond what it holds, measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from emo_hf import EmoOptimizer
from tests.emo_cases import OPTIMIZERS

PEAK = Path("/proc/self/clear_refs")
"""Where a process asks that its peak of resident memory be counted anew."""

ROW = 1024
"""Numbers in a row of a parameter."""


def resident(field: str) -> int:
    """A figure of this process's memory, in KiB.

    Args:
        field: its name in `/proc/self/status`.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(name: str, count: int, rows: int, options: dict[str, bool], file: str) -> None:
    """Write down by how many KiB the second step's peak is above what was resident before it.

    Args:
        name: class name of the optimizer.
        count: number of parameters.
        rows: rows of 1024 numbers in each.
        options: of the optimizer.
        file: what takes the figure.
    """
    torch.set_num_threads(2)
    cls = next(cls for cls in OPTIMIZERS if cls.__name__ == name)
    small = cls(with_gradients(count, 1), **options)
    for _ in range(3):  # the code of a step is in memory from here on
        take_a_step(small)
    optimizer = cls(with_gradients(count, rows), **options)
    take_a_step(optimizer)
    PEAK.write_text("5")
    before = resident("VmRSS")
    take_a_step(optimizer)
    Path(file).write_text(str(resident("VmHWM") - before))


def with_gradients(count: int, rows: int) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.ones(rows, ROW)) for _ in range(count)]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def take_a_step(optimizer: EmoOptimizer) -> None:
    optimizer.observe(1.0)
    optimizer.step()
