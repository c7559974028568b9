"""What this package adds to `import torch`.

    python scripts/benchmark_import.py

Each round is a fresh process that imports torch, then emo_hf, then asks for an optimizer; the table gives quartiles.
Which modules are slow is said by `python -X importtime -c "import torch, emo_hf; emo_hf.EmoNavi"`.
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
    finish(options, {"import": text}, {"milliseconds": taken})


if __name__ == "__main__":
    main()
