"""The figures that the published optimizers produce, and the closed-form inputs that they were produced on.

`tests/golden/<version>/<optimizer>.json` has five tensors in two groups and lists of cases; `law.json` beside it,
where there is one, has the law alone.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
FIRST_GROUP = 3  # tensors in it; the rest are in the second
GAPS = {1: range(10, 15), 4: range(6)}  # steps from 0 in which a tensor has no gradient, in the cases with `gap`

Case = dict[str, Any]


@cache
def figures(version: str, name: str) -> dict[str, Any]:
    """All that a file has."""
    read: dict[str, Any] = json.loads((GOLDEN / version / f"{name}.json").read_text())
    return read


def versions() -> list[str]:
    """The generations that there are figures of."""
    return sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


def label(case: Case) -> str:
    """What a case is, in a word, for the names of tests."""
    words = [case["losses_kind"]]
    words += ["shadow"] if case.get("use_shadow") else []
    words += ["gap"] if case.get("gap") else []
    words += sorted(case.get("options", {}))
    words += [case["dtype"]] if "dtype" in case else []
    return "-".join(words)


def dtype_of(case: Case) -> torch.dtype:
    """What the case was computed in."""
    return torch.float64 if case.get("dtype") == "float64" else torch.float32


def closed_form(shape: tuple[int, ...], values: list[float]) -> Tensor:
    """A tensor of float32 values."""
    return torch.tensor(values, dtype=torch.float64).float().reshape(shape)


def initial(shape: tuple[int, ...], k: int, phase: float) -> Tensor:
    """The parameter of number k before the first step."""
    n = math.prod(shape)
    return closed_form(shape, [0.5 * math.sin(0.7 * (i + 1) + 1.3 * (k + 1) + phase) for i in range(n)])


@cache
def gradient(shape: tuple[int, ...], k: int, t: int, phase: float) -> Tensor:
    """The gradient of tensor k at step t from 0; the same tensor each time, which nobody may change."""
    n = math.prod(shape)
    size = 0.05 + 0.04 * math.sin(0.05 * t + k)
    return closed_form(shape, [size * math.cos(0.31 * (i + 1) * (k + 1) + 0.17 * (t + 1) + phase) for i in range(n)])


def has_gradient(case: Case, k: int, t: int) -> bool:
    """Whether tensor k has a gradient at step t from 0."""
    return not (case.get("gap") and t in GAPS.get(k, ()))


def intervals(on: list[bool]) -> list[list[int]]:
    """The runs of steps [from, to], counted from 1, in which something is on."""
    runs: list[list[int]] = []
    for step, is_on in enumerate(on, start=1):
        if is_on and runs and runs[-1][1] == step - 1:
            runs[-1][1] = step
        elif is_on:
            runs.append([step, step])
    return runs
