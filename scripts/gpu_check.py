"""Everything that waits for a GPU, in one command of under 8 minutes. NOT RUN YET on a GPU: none was at hand.

    python scripts/gpu_check.py                       # a machine with one large GPU
    python scripts/gpu_check.py --only kernels stall  # some of the parts
    python scripts/gpu_check.py --device cpu --quick  # the script itself, without a GPU: what it finds means nothing

Parts: `kernels` (the Triton kernels against their formulas), `tests` (the tests that are skipped without a GPU),
`stall` (no step of any optimizer waits for the device), `scaler` (fp16 with a GradScaler, an overflow among the
steps), `trainer` (a real Trainer job beside `adamw_torch_fused`), `step` (benchmark_step.py beside the installed
peers), `bandwidth` (bytes that a step must move per second, as a share of a copy's, up to 1e9 elements), `memory`
(peaks).
It needs this checkout and its installed test extra, and no network.

Prints a line for each figure and writes all of them to `--output` as JSON. A part that fails ends no other one. Exits
with 0 if all went well, 1 if a part failed, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_parts
import torch
from measuring import write_report

LIMIT = 480.0
"""Seconds that all parts together should take; a part that would begin later is left out, and said to be missing."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda, or cpu with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, and nothing in processes of its own")
    parser.add_argument("--only", nargs="+", choices=gpu_parts.PARTS, default=list(gpu_parts.PARTS), help="parts")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_check"), help="path of .json")
    return parser.parse_args(argv)


def machine(device: torch.device) -> str:
    """What was measured on."""
    if device.type != "cuda":
        return f"{device} (nothing here says anything about a GPU)"
    of = torch.cuda.get_device_properties(device)
    return f"{of.name}, {of.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}"


def run_part(name: str, options: argparse.Namespace, begun: float) -> dict[str, Any]:
    """One part, guarded: what it found, what went wrong, how long it took."""
    started = time.perf_counter()
    found: dict[str, Any] = {}
    wrong: list[str] = []
    if started - begun > LIMIT:
        wrong.append(f"not begun: {LIMIT:.0f} s were over")
    else:
        try:
            gpu_parts.PARTS[name](options, found, wrong)
        except Exception:  # noqa: BLE001 — whatever it is, the other parts are worth their time
            wrong.append(traceback.format_exc(limit=-4).strip())
    return {"found": found, "wrong": wrong, "seconds": round(time.perf_counter() - started, 1)}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {'FAILED' if result['wrong'] else 'as it should be'}, {result['seconds']} s")
    for key, value in result["found"].items():
        print(f"  {key:<48} {value}")
    for line in result["wrong"]:
        print("  ! " + line.replace("\n", "\n    "))
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print(
            "gpu_check.py needs a GPU, and torch finds none here. What can be shown without one is in the tests; "
            "--device cpu --quick tries the script itself.",
            file=sys.stderr,
        )
        return 2
    if options.device.type != "cuda" and not options.quick:
        print(f"gpu_check.py --device {options.device} needs --quick: it measures GPUs only.", file=sys.stderr)
        return 2
    print(machine(options.device))
    begun, results = time.perf_counter(), {}
    for name in options.only:
        results[name] = run_part(name, options, begun)
        show(name, results[name])
    failed = [name for name, result in results.items() if result["wrong"]]
    seconds = time.perf_counter() - begun
    print(f"\n{len(results) - len(failed)} of {len(results)} parts as they should be, {seconds:.0f} s")
    write_report(options.output, {"machine": machine(options.device), "quick": options.quick, "parts": results})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
