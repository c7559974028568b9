"""What the benchmarks share: turns that are timed, memory that is read, reports that are written."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """How long a function takes, its work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turns(runs: Sequence[Callable[[], None]], rounds: int, device: torch.device) -> list[float]:
    """The median time of each function, called one after the other in every round."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, taken in zip(runs, times, strict=True):
            taken.append(seconds(run, device))
    return [statistics.median(taken) for taken in times]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile: how far a measurement scatters."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor) and value.dim())


def extra_memory(run: Callable[[], None], device: torch.device) -> float:
    """Peak of what a function allocates beyond what there is before it, in bytes; NaN where it cannot be measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far (Linux)
        before = _kib("/proc/self/status", "VmRSS")
        run()
        return max(_kib("/proc/self/status", "VmHWM") - before, 0)
    except OSError:
        return float("nan")


def free_memory(device: torch.device) -> float:
    """Bytes that may be allocated without swapping, as far as can be told; infinite where it cannot."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free: float = _kib("/proc/meminfo", "MemAvailable")
    except OSError:
        return float("inf")
    group = Path("/sys/fs/cgroup")
    try:  # a container may be given less than the machine has
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return free
    cached = int(parts.get("inactive_file", 0))
    return free if limit == "max" else min(free, int(limit) - used + cached)


def _kib(file: str, field: str) -> int:
    lines = Path(file).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, with the version of torch and its threads, to `path` with the suffix .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"torch": torch.__version__, "threads": torch.get_num_threads(), **report}
    path.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
