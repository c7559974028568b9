"""Time and memory of one optimizer step, ours and the installed peers', as multiples of torch's fused AdamW.

    python scripts/benchmark_step.py                  # both parameter sets and the sweeps
    python scripts/benchmark_step.py --fast           # the LoRA set, a few rounds: half a minute

Each optimizer takes turns with `torch.optim.AdamW(fused=True)` on the same tensors in the same process, and its time
is given as the ratio of the two medians, so that a slow or busy machine slows both. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import extra_memory, free_memory, in_turns, state_bytes, write_report
from torch import nn

from emo_hf import FAMILY

Shape = tuple[int, ...]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

LORA: list[Shape] = [(16, 2048), (2048, 16)] * 224
"""448 adapters of rank 16, 14.7 M parameters."""

_LAYER: list[Shape] = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
_LAYER += [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
FULL: list[Shape] = [(50257, 768), (1024, 768), *_LAYER * 6]
"""74 tensors of a small GPT, 82 M parameters."""

SETS = {"lora": LORA, "full": FULL}
COUNTS = (1, 4, 16, 64, 256, 1024, 4096)
SWEPT_ELEMENTS = 1 << 22
SIZES = (10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
SWEPT_TENSORS = 64

REFERENCE = "torch AdamW fused"
OURS: dict[str, Make] = {
    f"{cls.__name__} {version}": partial(cls, lr=1e-5, version=version)
    for cls in FAMILY.values()
    for version in cls.versions
}
IN_PLAIN_TORCH: dict[str, Make] = {
    f"{name} without compiler": partial(make, native=False) for name, make in OURS.items()
}

_BFLOAT16: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "bfloat16 compensated": {"compensate": True},
    "bfloat16 in 8 bits": {"compensate": "8bit", "state": "8bit"},
}
IN_FEWER_BITS: dict[str, Make] = {
    f"{name} {how}": partial(make, **(options if name != "EmoFact v3.1" else {**options, "state": None}))
    for name, make in OURS.items()
    if name in ("EmoNavi v3.1", "EmoLynx v3.1", "EmoFact v3.1")
    for how, options in _BFLOAT16.items()
}
"""On bfloat16 parameters; the reference moves as many in float32."""


def peers() -> dict[str, Make]:
    """The other optimizers that are installed."""
    found: dict[str, Make] = {
        "torch AdamW foreach": partial(torch.optim.AdamW, lr=1e-5, foreach=True),
        "torch Adafactor": partial(torch.optim.Adafactor, lr=1e-5),
    }
    wanted = {
        "optimi": ("AdamW", "Lion"),
        "pytorch_optimizer": ("Lion", "AdaFactor", "ScheduleFreeAdamW", "Prodigy"),
        "schedulefree": ("AdamWScheduleFree",),
        "prodigyopt": ("Prodigy",),
        "bitsandbytes.optim": ("AdamW8bit", "Lion8bit"),
    }
    for module, names in wanted.items():
        try:
            library = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            logging.info("%s is left out: %s", module, error)
            continue
        for name in names:
            found[f"{module.split('.')[0]} {name}"] = partial(getattr(library, name), lr=1e-5)
    return found


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        ratio: median time of a step over that of fused AdamW, taken in turns.
        milliseconds: median time of a step.
        state_bytes: bytes of optimizer state per parameter element.
        all_bytes: bytes of parameter, gradient and state per parameter element.
        extra_mib: peak of the memory that a step takes and gives back, in MiB.
        bandwidth: bytes that the step must move, per second, over what a copy reaches in the same run.
    """

    optimizer: str
    parameters: str
    ratio: float
    milliseconds: float
    state_bytes: float
    all_bytes: float
    extra_mib: float
    bandwidth: float


def tensors(shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Parameters with gradients."""
    torch.manual_seed(0)
    params = [nn.Parameter((torch.randn(shape, device=device) * 0.02).to(dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param) * 0.01
    return params


def stepper(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that takes one step, shown a loss if the optimizer wants one, which moves a little."""
    observe = getattr(optimizer, "observe", None)
    losses = itertools.cycle((1.0, 1.2, 1.0, 0.8))
    if hasattr(optimizer, "train"):
        optimizer.train()

    def step() -> None:
        if observe is not None:
            observe(next(losses))
        optimizer.step()

    return step


def copy_bandwidth(elements: int, device: torch.device) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    return 8 * elements / in_turns([copy], 7, device)[0]


def measure(name: str, make: Make, parameters: str, shapes: Sequence[Shape], args: argparse.Namespace) -> Result:
    """One optimizer on one set of parameters, in turns with the reference."""
    params = tensors(shapes, args.device)
    reference = stepper(torch.optim.AdamW(params, lr=1e-5, fused=True))
    dtype = torch.bfloat16 if name in IN_FEWER_BITS else torch.float32
    own = params if dtype is torch.float32 else tensors(shapes, args.device, dtype)
    optimizer = make(own)
    step = stepper(optimizer)
    for _ in range(2):
        reference()
        step()
    extra = extra_memory(step, args.device)
    base, taken = in_turns([reference, step], args.rounds, args.device)
    elements = sum(param.numel() for param in params)
    state, width = state_bytes(optimizer), dtype.itemsize
    moved = 3 * width * elements + 2 * state  # parameters and state are read and written, gradients read
    speed = moved / taken / copy_bandwidth(min(elements, 1 << 25), args.device)
    per_element = state / elements
    return Result(
        name, parameters, taken / base, 1e3 * taken, per_element, per_element + 2 * width, extra / 2**20, speed
    )


def sweeps(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """How the ratios of our optimizers change with the number of tensors, and of elements."""
    sizes = [size for size in SIZES if size <= args.max_elements]
    return {
        "tensors": [_point(count, [_matrix(SWEPT_ELEMENTS // count)] * count, args) for count in COUNTS],
        "elements": [_point(size, [_matrix(size // SWEPT_TENSORS)] * SWEPT_TENSORS, args) for size in sizes],
    }


def _matrix(elements: int) -> Shape:
    """About square, so that EmoFact shows its factored side."""
    columns = math.isqrt(elements)
    return (elements // columns, columns)


def _point(x: int, shapes: Sequence[Shape], args: argparse.Namespace) -> dict[str, Any]:
    swept = {name: make for name, make in OURS.items() if wanted(name, args)}
    ratios: dict[str, float | None] = dict.fromkeys(swept)
    told = []
    elements = sum(math.prod(shape) for shape in shapes)
    fewer = argparse.Namespace(**vars(args) | {"rounds": min(args.rounds, 5) if elements > 10**7 else args.rounds})
    for name, make in swept.items():
        needed, free = memory_needed(make, elements), free_memory(args.device)
        if needed > free:
            told.append(f"{name} left out: it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
            continue
        ratios[name] = measure(name, make, str(x), shapes, fewer).ratio
        told.append(f"{name} {ratios[name]:.2f}")
        gc.collect()
    print(f"{x:>13,}  " + "  ".join(told), flush=True)
    return {"x": x, "ratios": ratios}


def memory_needed(make: Make, elements: int) -> float:
    """Bytes that `measure` takes for an optimizer of so many elements, generously."""
    sample = tensors([(64, 64)], torch.device("cpu"))
    optimizer = make(sample)
    stepper(optimizer)()
    of_reference = 8  # its two tensors of state; parameters and gradients are 8 more
    per_element = 8 + of_reference + state_bytes(optimizer) / sample[0].numel()
    return 1.05 * elements * per_element + 2**30


def wanted(name: str, args: argparse.Namespace) -> bool:
    """Whether `--only` asks for an optimizer."""
    return not args.only or any(word.lower() in name.lower() for word in args.only)


def line(result: Result) -> str:
    return (
        f"| {result.optimizer} | {result.parameters} | {result.ratio:.2f} | {result.milliseconds:.1f} "
        f"| {result.state_bytes:.3f} | {result.all_bytes:.2f} | {result.extra_mib:.1f} | {result.bandwidth:.2f} |"
    )


HEADER = (
    "| optimizer | set | time / fused AdamW | ms | state, bytes per parameter | with weight and gradient "
    "| extra memory, MiB | bandwidth / copy |\n|---|---|---|---|---|---|---|---|"
)


def plot(results: list[Result], swept: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The ratios of all optimizers as bars, and the sweeps as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * (1 + len(swept)), 5), layout="constrained")
    axes = figure.subplots(1, 1 + len(swept), squeeze=False)[0]
    names = list(dict.fromkeys(result.optimizer for result in results))
    for offset, parameters in enumerate(dict.fromkeys(result.parameters for result in results)):
        chosen = [result for result in results if result.parameters == parameters]
        positions = [names.index(result.optimizer) + 0.4 * offset - 0.2 for result in chosen]
        axes[0].barh(positions, [result.ratio for result in chosen], height=0.4, label=parameters)
    axes[0].set(yticks=range(len(names)), yticklabels=names, xlabel="time / fused AdamW", xscale="log")
    axes[0].invert_yaxis()
    axes[0].axvline(1.0, color="black", linewidth=1)
    axes[0].legend()
    for axis, (name, points) in zip(axes[1:], swept.items(), strict=True):
        for optimizer in points[0]["ratios"]:
            known = [(p["x"], p["ratios"][optimizer]) for p in points if p["ratios"][optimizer] is not None]
            axis.plot(*zip(*known, strict=True), marker="o", label=optimizer)
        axis.set(xscale="log", xlabel=name, ylabel="time / fused AdamW", ylim=(0, None))
        axis.axhline(1.0, color="black", linewidth=1)
        axis.legend()
    figure.savefig(path, dpi=120)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="parameter sets")
    parser.add_argument("--only", nargs="+", default=[], help="optimizers whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=15, help="turns that each optimizer takes with the reference")
    parser.add_argument(
        "--threads", type=int, default=None, help="threads that torch may use (default: its own choice)"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument(
        "--max-elements",
        type=lambda text: int(float(text)),
        default=10**7,
        help="largest model of the sweep, up to 1e9; what does not fit into the free memory is left out",
    )
    parser.add_argument("--no-sweep", action="store_true", help="the two sets only")
    parser.add_argument("--fast", action="store_true", help="the LoRA set, 5 rounds, no sweep")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_step"), help="path of .json and .png")
    args = parser.parse_args(argv)
    if args.fast:
        args.sets, args.rounds, args.no_sweep = ["lora"], 5, True
    return args


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = {
        name: make for name, make in (OURS | IN_FEWER_BITS | IN_PLAIN_TORCH | peers()).items() if wanted(name, args)
    }
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; 1.00 is {REFERENCE}\n\n{HEADER}"
    )
    results = []
    for parameters in args.sets:
        for name, make in chosen.items():
            results.append(measure(name, make, parameters, SETS[parameters], args))
            print(line(results[-1]), flush=True)
            gc.collect()
    print()
    swept = {} if args.no_sweep else sweeps(args)
    report = {
        "device": str(args.device),
        "rounds": args.rounds,
        "reference": REFERENCE,
        "results": [asdict(result) for result in results],
        "sweeps": swept,
    }
    write_report(args.output, report)
    try:
        plot(results, swept, args.output.with_suffix(".png"))
    except ImportError:
        logging.info("no picture: matplotlib is not installed")
    print(f"written: {args.output}.json and .png")


if __name__ == "__main__":
    main()
