"""What `import emo_hf` adds to `import torch`.

    python scripts/benchmark_import.py

Each round is a fresh process that imports torch, then emo_hf; the table gives quartiles. Below it stand the slowest
modules of emo_hf, by `python -X importtime`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from measuring import arguments, finish, quartiles, table

CODE = """
from time import perf_counter
begin = perf_counter()
import torch
middle = perf_counter()
import emo_hf
print(middle - begin, perf_counter() - middle)
"""


def milliseconds() -> tuple[float, float]:
    """How long a fresh process imports torch, and emo_hf after it."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    torch, added = (1e3 * float(word) for word in done.stdout.split())
    return torch, added


def slowest(count: int) -> list[tuple[float, str]]:
    """Own time in milliseconds and name of the modules that `import emo_hf` loads after torch, the slowest first."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch, emo_hf"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    read = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    names = [name.strip() for _, _, name in read]
    after = [(int(own) / 1e3, name.strip()) for own, _, name in read[names.index("torch") + 1 :]]
    return sorted(after, reverse=True)[:count]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, output="benchmark_import")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args(argv)
    milliseconds()  # the first of all finds cold files and uncompiled modules
    taken = list(zip(*[milliseconds() for _ in range(options.rounds)], strict=True))
    rows = [
        (name, f"{middle:.0f}", f"{low:.0f} … {high:.0f}")
        for name, values in zip(("import torch", "import emo_hf adds"), taken, strict=True)
        for low, middle, high in [quartiles(values)]
    ]
    text = table(("", "ms", "quartiles"), rows)
    print(text)
    modules = slowest(8)
    for own, name in modules:
        print(f"{own:8.1f} ms  {name}")
    finish(options, {"import": text}, {"milliseconds": taken, "slowest": modules})


if __name__ == "__main__":
    main()
