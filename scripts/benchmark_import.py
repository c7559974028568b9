"""What this package adds to `import torch`.

    python scripts/benchmark_import.py

Each round is a fresh process that imports torch, then emo_hf, then asks for an optimizer; the table gives quartiles.
Below it stand the slowest modules of emo_hf, by `python -X importtime`.
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
after_torch = perf_counter()
import emo_hf
after_package = perf_counter()
emo_hf.EmoNavi
print(after_torch - begin, after_package - after_torch, perf_counter() - after_package)
"""


PARTS = ("import torch", "import emo_hf", "the first optimizer, emo_hf.EmoNavi")


def milliseconds() -> list[float]:
    """How long a fresh process takes for each of the parts."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return [1e3 * float(word) for word in done.stdout.split()]


def slowest(count: int) -> list[tuple[float, str]]:
    """Own time in milliseconds and name of the modules that an optimizer loads after torch, the slowest first."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch, emo_hf; emo_hf.EmoNavi"]
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
        (name, f"{middle:.1f}", f"{low:.1f} … {high:.1f}")
        for name, values in zip(PARTS, taken, strict=True)
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
