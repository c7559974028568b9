"""What `import emo_hf` adds to `import torch`.

    python scripts/benchmark_import.py

Each round is a fresh process that imports torch, then emo_hf; the table gives medians and quartiles. The last lines
name the slowest modules of emo_hf, by `python -X importtime`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import quartiles, write_report

CODE = """
from time import perf_counter
begin = perf_counter()
import torch
middle = perf_counter()
import emo_hf
print(middle - begin, perf_counter() - middle)
"""


def seconds() -> tuple[float, float]:
    """How long a fresh process imports torch, and emo_hf after it."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    torch, added = map(float, done.stdout.split())
    return torch, added


def slowest(count: int) -> list[tuple[float, str]]:
    """Own time in milliseconds and name of the modules that `import emo_hf` loads after torch, the slowest first."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch, emo_hf"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    table = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    names = [name.strip() for _, _, name in table]
    after = [(int(own) / 1e3, name.strip()) for own, _, name in table[names.index("torch") + 1 :]]
    return sorted(after, reverse=True)[:count]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_import"), help="path of .json")
    options = parser.parse_args(argv)
    seconds()  # the first of all finds cold files and uncompiled modules
    torch, added = map(quartiles, zip(*[seconds() for _ in range(options.rounds)], strict=True))
    for name, (low, middle, high) in (("import torch", torch), ("import emo_hf adds", added)):
        print(f"{name:20} {1e3 * middle:8.1f} ms   (quartiles {1e3 * low:.1f} … {1e3 * high:.1f})")
    modules = slowest(8)
    for milliseconds, name in modules:
        print(f"{milliseconds:8.1f} ms  {name}")
    write_report(options.output, {"import_torch": torch, "emo_hf_adds": added, "slowest": modules})


if __name__ == "__main__":
    main()
