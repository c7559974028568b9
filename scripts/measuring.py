"""What the benchmarks share: pairs of times, memory that is read, tables that are printed and written into pages."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import emo_hf


def arguments(doc: str | None, *, output: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have.

    Args:
        doc: the docstring of the script.
        output: the script's name, below `outputs`, where its figures go as JSON.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="threads that torch may use (default: its own choice)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path(f"outputs/{output}.json"), help="all figures, as JSON")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between their markers in this page")
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command; torch uses the threads that they allow."""
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def labelled(file: str, labels: list[str]) -> list[tuple[str, int]]:
    """The sentences of a CSV file with the columns sentence and label; new labels are appended to the list."""
    with open(file, encoding="utf-8", newline="") as lines:
        rows = [(row["sentence"], row["label"]) for row in csv.DictReader(lines)]
    labels += sorted({label for _, label in rows} - set(labels))
    return [(sentence, labels.index(label)) for sentence, label in rows]


def spread(middle: float, values: Sequence[float]) -> str:
    """A figure with the smallest and the largest of the values that it stands for."""
    return f"{middle:.3f} ({min(values):.3f} … {max(values):.3f})"


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a function takes, its work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_pairs(
    reference: Callable[[], object], run: Callable[[], object], rounds: int, device: torch.device
) -> list[tuple[float, float]]:
    """The times of two functions that take turns, each first in every other round."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            own = seconds(run, device)
            pairs.append((seconds(reference, device), own))
        else:
            of_reference = seconds(reference, device)
            pairs.append((of_reference, seconds(run, device)))
    return pairs


def ratios(pairs: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
    """Quartiles of what the second takes as a multiple of the first of its pair: a slow moment slows both."""
    return quartiles([own / of_reference for of_reference, own in pairs])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor) and value.dim())


def extra_memory(run: Callable[[], object], device: torch.device) -> float:
    """Peak of what a function allocates beyond what there is before it, in bytes; NaN where it cannot be measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far (Linux)
        before = _resident("VmRSS")
        run()
        return max(_resident("VmHWM") - before, 0)
    except OSError:
        return float("nan")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def machine(device: torch.device, packages: Sequence[str] = ()) -> str:
    """What was measured on, and with which versions; packages that are not installed are left out."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{_processor()}, {torch.get_num_threads()} threads on {len(os.sched_getaffinity(0))} cores"
    said = [f"emo_hf {emo_hf.__version__}", f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    installed = {each.name.lower().replace("-", "_") for each in distributions()}
    said += [f"{name} {version(name)}" for name in packages if name.lower().replace("-", "_") in installed]
    return f"{where}; {', '.join(said)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def found(module: str) -> Any:
    """A module, or None with a line that says why it cannot be had."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"left out: {module} ({error})", file=sys.stderr)
        return None


def finish(options: argparse.Namespace, tables: Mapping[str, str], results: Any, packages: Sequence[str] = ()) -> None:
    """Write the figures as JSON, and the tables into the page that `--write` names.

    Args:
        options: of the command.
        tables: name of each table's place in the page → the table.
        results: what JSON can hold.
        packages: whose versions matter here.
    """
    measured_on = machine(options.device, packages)
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"command": command, "machine": measured_on, "results": results}
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.write:
        said = f"    {command}\n\n{measured_on}; {time.strftime('%Y-%m-%d')}."
        write_tables(options.write, {name: f"{text}\n\n{said}" for name, text in tables.items()})
        print(f"\nwritten: {options.write}")


def write_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between `<!-- measured: NAME -->` and `<!-- /measured -->` of a page, in place of what is there.

    Raises:
        SystemExit: if the page has no such place; then nothing is written.
    """
    text = page.read_text(encoding="utf-8")
    for name, measured in tables.items():
        begin = f"<!-- measured: {name} -->"
        place = re.compile(f"{re.escape(begin)}\n.*?<!-- /measured -->", flags=re.DOTALL)
        if not place.search(text):
            raise SystemExit(f"{page}: there is no {begin} … <!-- /measured --> for the table to stand in")
        text = place.sub(lambda _, put=f"{begin}\n{measured}\n<!-- /measured -->": put, text)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")
