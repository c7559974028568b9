"""What an optimizer step costs, as a multiple of torch's bare fused AdamW: every table of docs/speed.md about it.

    python scripts/benchmark_step.py                          # all tables, both parameter sets
    python scripts/benchmark_step.py --tables attach --sets lora --rounds 5
    python scripts/benchmark_step.py --threads 2 --write docs/speed.md

Each optimizer takes turns with `torch.optim.AdamW(fused=True)` on the same tensors in the same process; the tables
give the median of the ratios of these pairs, so that a moment in which the machine is busy slows both. `lora` are 448
tensors with 14.7 M parameters, `full` 74 tensors with 82 M. Nothing is downloaded.

Tables: `family` (every optimizer and generation: by its own choice, and as without a C compiler), `attach` (laws,
guard and average beside AdamW, in turns with AdamW alone), `average` (the average of the weights over many steps,
which need not all cost the same), `low_precision` (bfloat16, compensated, 8 bits), `peers` (what else is installed).
"""

from __future__ import annotations

import gc
import itertools
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from measuring import arguments, extra_memory, finish, found, in_pairs, machine, parsed, ratios, state_bytes, table
from torch import nn

from emo_hf import FAMILY, attach

Shape = tuple[int, ...]
Params = list[nn.Parameter]
Make = Callable[[Params], Any]
"""Makes an optimizer, or an optimizer with an emotion attached, of parameters."""

_LAYER: list[Shape] = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
_LAYER += [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
SETS: dict[str, list[Shape]] = {
    "lora": [(16, 2048), (2048, 16)] * 224,  # adapters of rank 16
    "full": [(50257, 768), (1024, 768), *_LAYER * 6],  # a small GPT
}
LR = 1e-5
TURN = 20  # steps of a whole run that are taken before it is the other's turn
PEERS = {
    "torch.optim": {"AdamW": {"foreach": True}, "Adafactor": {}},
    "optimi": {"AdamW": {}, "Lion": {}},
    "pytorch_optimizer": {"Lion": {}, "AdaFactor": {}, "ScheduleFreeAdamW": {}, "Prodigy": {}},
    "schedulefree": {"AdamWScheduleFree": {}},
    "prodigyopt": {"Prodigy": {}},
    "bitsandbytes.optim": {"AdamW8bit": {}, "Lion8bit": {}},
}
PACKAGES = ["torch-optimi", "pytorch_optimizer", "schedulefree", "prodigyopt", "bitsandbytes"]


def adamw(params: Params) -> torch.optim.Optimizer:
    """What everything is compared with."""
    return torch.optim.AdamW(params, lr=LR, fused=True)


def attached(params: Params, **options: Any) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW with an emotion attached: optimizer and handle."""
    optimizer = adamw(params)
    return optimizer, attach(optimizer, **options)


@dataclass(frozen=True)
class Case:
    """One column of a row: how the optimizer is made, and on what it runs.

    Attributes:
        make: makes it.
        dtype: of its parameters; the reference's are float32.
        clip: whether gradients are clipped by their norm before the step, the reference's too.
        steps: of the run that is timed; of more than one the mean is told, as they differ.
    """

    make: Make
    dtype: torch.dtype = torch.float32
    clip: bool = False
    steps: int = 1


@dataclass(frozen=True)
class Result:
    """What was measured of a case on a set of parameters.

    Attributes:
        ratio: lower quartile, median and upper quartile of its time over that of fused AdamW.
        milliseconds: median time of one step.
        state_bytes: bytes of state per parameter.
        extra_mib: peak of the memory that a step takes and gives back, in MiB.
    """

    table: str
    row: str
    column: str
    parameters: str
    ratio: tuple[float, float, float]
    milliseconds: float
    state_bytes: float
    extra_mib: float


Rows = dict[str, dict[str, Case]]
"""Name of each row → its columns."""


def family() -> Rows:
    made = {f"{cls.__name__} {name}": (cls, name) for cls in FAMILY.values() for name in cls.versions}
    return {
        row: {
            "its own choice": Case(partial(cls, lr=LR, version=name)),
            "without a C compiler": Case(partial(cls, lr=LR, version=name, native=False)),
        }
        for row, (cls, name) in made.items()
    }


def attachments() -> Rows:
    options: dict[str, dict[str, Any]] = {
        "law v3.1": {"law": "v3.1"},
        "law settle, no guard": {"law": "settle", "guard": False, "average_weights": False},
        "law settle with its guard": {"law": "settle", "average_weights": False},
        "law settle as it comes: guard and average": {"law": "settle"},
        "no law, average of the weights": {"law": "none", "average_weights": True},
    }
    return {
        row: {name: Case(partial(attached, **kept), clip=clip) for name, clip in (("bare", False), ("clipped", True))}
        for row, kept in options.items()
    }


def averages(steps: int) -> Rows:
    kinds: dict[str, Any] = {"float32": True, "rounded": "rounded", "in main memory": "cpu"}
    return {
        f"AdamW with the average, {row}": {
            f"mean of {steps} steps": Case(partial(attached, law="none", average_weights=kind), steps=steps)
        }
        for row, kind in kinds.items()
    }


def low_precision() -> Rows:
    kept: dict[str, dict[str, Any]] = {
        "bfloat16": {},
        "compensated": {"compensate": True},
        "in 8 bits": {"compensate": "8bit", "state": "8bit"},
    }
    rows: Rows = {}
    for name in ("emonavi", "emolynx", "emofact"):
        cls = FAMILY[name]
        rows[cls.__name__] = {"float32": Case(partial(cls, lr=LR))}
        for column, options in kept.items():
            own = {key: value for key, value in options.items() if not (name == "emofact" and key == "state")}
            rows[cls.__name__][column] = Case(partial(cls, lr=LR, **own), torch.bfloat16)
    return rows


def peers() -> Rows:
    rows: Rows = {}
    for module, names in PEERS.items():
        library = found(module)
        for name, options in names.items() if library else ():
            rows[f"{module.partition('.')[0]} {name}"] = {"": Case(partial(getattr(library, name), lr=LR, **options))}
    return rows


def tables(options: Namespace) -> dict[str, Rows]:
    """All tables that are asked for."""
    every: dict[str, Callable[[], Rows]] = {
        "family": family,
        "attach": attachments,
        "average": partial(averages, options.steps),
        "low_precision": low_precision,
        "peers": peers,
    }
    return {name: _wanted(make(), options.only) for name, make in every.items() if name in options.tables}


def _wanted(rows: Rows, words: Sequence[str]) -> Rows:
    return {
        row: cases for row, cases in rows.items() if not words or any(word.lower() in row.lower() for word in words)
    }


def tensors(shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype = torch.float32) -> Params:
    """Parameters with gradients."""
    torch.manual_seed(0)
    params = [nn.Parameter((torch.randn(shape, device=device) * 0.02).to(dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param) * 0.01
    return params


def stepper(made: Any, params: Params | None = None, steps: int = 1) -> Callable[[], None]:
    """A function that takes steps, shown a loss that moves a little if there is an emotion to feel it.

    Args:
        made: an optimizer, or an optimizer and what is attached to it.
        params: whose gradients are clipped by their norm before each step; None: none are.
        steps: how many each call takes.
    """
    optimizer, shown = made if isinstance(made, tuple) else (made, made)
    observe, saw = getattr(shown, "observe", None), getattr(shown, "saw_gradient_norm", None)
    losses = itertools.cycle((1.0, 1.2, 1.0, 0.8))
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedulefree's optimizers insist on it

    def run() -> None:
        for _ in range(steps):
            if observe is not None:
                observe(next(losses))
            if params is not None:
                norm = nn.utils.clip_grad_norm_(params, 1e9)
                if saw is not None:  # as accelerate's clipping tells it
                    saw(norm, params)
            optimizer.step()

    return run


def measure(case: Case, shapes: Sequence[Shape], options: Namespace, *names: str) -> Result:
    """One case in turns with the reference."""
    params = tensors(shapes, options.device)
    own = params if case.dtype is torch.float32 else tensors(shapes, options.device, case.dtype)
    made = case.make(own)
    few = (params, own) if case.clip else (None, None)
    stepper(adamw(params), few[0])(), stepper(made, few[1])()  # state is made, kernels are loaded
    extra = extra_memory(stepper(made, few[1]), options.device)
    if case.steps == 1:
        reference, run = (stepper(one, which) for one, which in zip((adamw(params), made), few, strict=True))
        in_pairs(reference, run, 1, options.device)
        pairs = in_pairs(reference, run, options.rounds, options.device)
    else:
        pairs = [whole_run(case, params, own, options.device) for _ in range(options.rounds)]
    optimizer = made[0] if isinstance(made, tuple) else made
    state = state_bytes(optimizer) / sum(param.numel() for param in own)
    taken = sorted(time for _, time in pairs)[len(pairs) // 2] / case.steps
    return Result(*names, ratios(pairs), 1e3 * taken, state, extra / 2**20)


def whole_run(case: Case, params: Params, own: Params, device: torch.device) -> tuple[float, float]:
    """Seconds of the reference and of the case over a run from its first step, a few steps of each at a time."""
    turn = min(TURN, case.steps)
    reference, run = (stepper(made, steps=turn) for made in (adamw(params), case.make(own)))
    of_reference, of_case = zip(*in_pairs(reference, run, case.steps // turn, device), strict=True)
    return sum(of_reference), sum(of_case)


def results(name: str, rows: Rows, options: Namespace) -> Iterator[Result]:
    """All results of one table, told as they come; what cannot be made here is left out, and said."""
    for row, cases in rows.items():
        for column, case in cases.items():
            for parameters in options.sets:
                try:
                    result = measure(case, SETS[parameters], options, name, row, column, parameters)
                except (RuntimeError, TypeError, ValueError) as error:
                    print(f"left out: {row}, {column or parameters} ({error})", file=sys.stderr)
                    break
                low, middle, high = result.ratio
                print(
                    f"{row:45} {column:22} {parameters:5} {middle:6.2f} ({low:.2f} … {high:.2f}) "
                    f"{result.milliseconds:8.1f} ms {result.extra_mib:7.1f} MiB",
                    flush=True,
                )
                yield result
        gc.collect()


def as_table(measured: Sequence[Result]) -> str:
    """Rows by optimizer, columns by case and set, state per parameter in the last."""
    columns = list(dict.fromkeys((result.column, result.parameters) for result in measured))
    by_place = {(result.row, result.column, result.parameters): result for result in measured}
    rows = []
    for row in dict.fromkeys(result.row for result in measured):
        here = [by_place.get((row, *column)) for column in columns]
        state = dict.fromkeys(f"{result.state_bytes:.3g}" for result in here if result)
        rows.append([row, *(f"{each.ratio[1]:.2f}" if each else "" for each in here), ", ".join(state)])
    head = [f"{column}, {parameters}".removeprefix(", ") for column, parameters in columns]
    return table(["", *head, "state, bytes per parameter"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, output="benchmark_step")
    names = ["family", "attach", "average", "low_precision", "peers"]
    parser.add_argument("--tables", nargs="+", choices=names, default=names)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="parameter sets")
    parser.add_argument("--only", nargs="+", default=[], help="rows whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of each case")
    parser.add_argument("--steps", type=int, default=1000, help="steps over which the average's mean cost is taken")
    options = parsed(parser, argv)
    print(f"{machine(options.device)}; 1.00 is torch.optim.AdamW(fused=True)\n")
    measured = {name: list(results(name, rows, options)) for name, rows in tables(options).items()}
    made = {f"step {name}": as_table(results) for name, results in measured.items() if results}
    for name, text in made.items():
        print(f"\n{name}\n\n{text}")
    finish(options, made, [asdict(each) for results in measured.values() for each in results], PACKAGES)


if __name__ == "__main__":
    main()
