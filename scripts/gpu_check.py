"""Everything that waits for a GPU, in one command of under 10 minutes. NOT RUN YET on a GPU: none was at hand.

    python scripts/gpu_check.py                      # a machine with a GPU; with two or more, many ranks as well
    python scripts/gpu_check.py --only stall ranks   # some of the parts
    python scripts/gpu_check.py --device cpu         # the script itself: what it finds says nothing about a GPU
    python scripts/benchmark_trainer.py --device cuda  # beside it: what a real Trainer job costs

It needs this checkout with its installed test extra, and no network. Prints a line for each figure and writes all to
`--output` as JSON. A part that fails ends no other one. Exits with 0 if all went well, 1 if a part failed, 2 if there
is no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import benchmark_step
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from measuring import arguments, finish, machine, seconds
from torch import nn
from torch.distributed.tensor import DTensor

from emo_hf import FAMILY, EmoOptimizer

ROOT = Path(__file__).resolve().parents[1]
Found = dict[str, Any]
Wrong = list[str]

OPTIMIZERS = {f"{cls.__name__} {name}": (cls, name) for cls in FAMILY.values() for name in cls.versions}
"""Every optimizer in each of its generations."""

GOALS = {"emonavi": 1.0, "emolynx": 0.75, "emofact": 0.7}
"""Time of a step on the full set, as a multiple of fused AdamW's."""

ROOFLINE = 0.8
"""Share of a copy's bandwidth that a step of EmoNavi should reach where tensors are large."""

STEPS, SAVED_AT, BATCH, WIDTH = 40, 20, 4, 16


def make(name: str, module: nn.Module, **options: Any) -> EmoOptimizer:
    """An optimizer at a learning rate of 0.01, or at such a scale."""
    cls, version = OPTIMIZERS[name]
    lr = 10.0 if cls.versions[version].lr_is_a_scale else 0.01
    made: EmoOptimizer = cls(module.parameters(), lr=lr, weight_decay=0.1, version=version, **options)
    return made


def small_model(device: torch.device) -> nn.Sequential:
    """Vectors, and matrices of which one is large enough for state in 8 bits."""
    torch.manual_seed(0)
    layers = nn.Linear(WIDTH, 33), nn.Tanh(), nn.Linear(33, 128), nn.Linear(128, 5), nn.Linear(5, 1)
    return nn.Sequential(*layers).to(device)


def run(*command: str, limit: float) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit,
        check=False,
    )  # fmt: skip


def tests(options: argparse.Namespace, found: Found, wrong: Wrong) -> None:
    """The Triton kernels against their formulas on this device, and the tests that are skipped without a GPU."""
    if options.device.type == "cpu":
        found["not shown"] = "these tests need a GPU"
        return
    kernels = ["tests/optim/triton/on_device.py"]
    for chosen in (kernels, ["tests/optim/test_moved.py"], ["tests/optim/test_as_torch_does.py", "-k", "cuda"]):
        done = run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *chosen, limit=180)
        lines = done.stdout.strip().splitlines() or ["nothing was printed"]
        found[f"pytest {' '.join(chosen)}"] = lines[-1]
        if done.returncode:  # no test at all is wrong too
            failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            wrong.append("\n".join([*(failures or lines[-20:]), done.stderr[-2000:]]).strip())


WAYS: list[dict[str, Any]] = [
    {}, {"foreach": False, "fused": False, "native": False}, {"foreach": True}, {"fused": True},
    {"compensate": "8bit", "state": "8bit"},
]  # fmt: skip
"""An optimizer's own choice, which the first two always have, and whatever else can be asked for."""


def ways(device: torch.device) -> Iterator[tuple[str, nn.Module, EmoOptimizer]]:
    """Every optimizer in every generation, in every way."""
    for name, choice in product(OPTIMIZERS, WAYS):
        module = small_model(device).to(torch.bfloat16 if "compensate" in choice else torch.float32)
        try:
            optimizer = make(name, module, **choice)
        except ValueError:
            if choice in WAYS[:2]:
                raise
            continue
        yield f"{name} ({', '.join(map(str, choice)) or 'its choice'})", module, optimizer


def stall(options: argparse.Namespace, found: Found, wrong: Wrong) -> None:
    """No optimizer waits for the device between backward and the end of the step, from its third step on."""
    on_gpu = options.device.type == "cuda"
    checked = 0
    for name, module, optimizer in ways(options.device):
        dtype = next(module.parameters()).dtype
        for step in range(5):
            loss = module(torch.randn(BATCH, WIDTH, device=options.device, dtype=dtype)).square().mean()
            optimizer.observe(loss)
            loss.backward()
            if on_gpu and step > 1:
                torch.cuda.synchronize()
                torch.cuda._sleep(10**8)  # cycles, some 50 ms: a long backward pass
                torch.cuda.set_sync_debug_mode("error")
            begun = time.perf_counter()
            try:
                optimizer.step()
            except RuntimeError as error:
                wrong.append(f"{name}: {error}")
            finally:
                if on_gpu:
                    torch.cuda.set_sync_debug_mode("default")
            if on_gpu and step == 4 and time.perf_counter() - begun > 0.03:
                wrong.append(f"{name}: a step took {time.perf_counter() - begun:.3f} s beside a busy device")
            optimizer.zero_grad()
        checked += 1
    found["stepped, not shown whether they stall" if not on_gpu else "stepped beside a busy device"] = checked


def scaler(options: argparse.Namespace, found: Found, wrong: Wrong) -> None:
    """fp16 autocast with a GradScaler: weights stay finite, an overflow is a step that is not taken."""
    for name in OPTIMIZERS:
        module = small_model(options.device)
        optimizer = make(name, module)
        scale = torch.amp.GradScaler(options.device.type, init_scale=2.0**10)
        for step in range(6):
            with torch.autocast(options.device.type, dtype=torch.float16):
                loss = module(torch.randn(BATCH, WIDTH, device=options.device)).square().mean()
            optimizer.observe(loss)
            scale.scale(loss).backward()
            before = [param.detach().clone() for param in module.parameters()]
            if step == 4:
                module[0].weight.grad.fill_(float("inf"))  # type: ignore[union-attr, operator]
            scale.step(optimizer)
            scale.update()
            if step == 4 and not all(map(torch.equal, before, module.parameters())):
                wrong.append(f"{name}: a step was taken although the gradients had overflown")
            optimizer.zero_grad()
        if not all(bool(param.isfinite().all()) for param in module.parameters()):
            wrong.append(f"{name}: weights are not finite after fp16 steps")
    found["optimizers"] = len(OPTIMIZERS)


def ranks(options: argparse.Namespace, found: Found, wrong: Wrong) -> None:
    """Many ranks: the same weights and emotion on all, to the last bit, and a checkpoint that goes on as if never cut.

    DDP over NCCL, and accelerate's FSDP2 with sharded checkpoints, which it does on GPUs only; on CPUs DDP over gloo.
    """
    on_cpu = options.device.type == "cpu"
    world = 2 if on_cpu else torch.cuda.device_count()
    if world < 2:
        found["not shown"] = "many ranks need two GPUs"
        return
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), __file__]
    for strategy in ("ddp",) if on_cpu else ("ddp", "fsdp2"):
        with tempfile.TemporaryDirectory() as folder:
            own = ["--as-rank", strategy, "--device", str(options.device), "--sync", options.sync, "--output", folder]
            done = run(*launch, *own, limit=240)
        told = done.stdout.splitlines() if not done.returncode else [done.stderr[-2000:].strip()]
        found[f"{strategy}, {world} ranks"] = "as it should be" if not told else "not as it should be"
        wrong += [f"{strategy}: {line}" for line in told]


def one_rank(options: argparse.Namespace) -> NoReturn:
    """One rank: each optimizer's run and its resumption; rank 0 prints what is wrong."""
    torch.set_num_threads(1)
    for name in OPTIMIZERS if options.sync == "global" else list(OPTIMIZERS)[:1]:
        train = partial(train_on_a_rank, options.as_rank, name, options.output / name, options)
        own = (train(0), train(SAVED_AT))
        ends: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ends, own)
        if dist.get_rank() == 0 and len({whole for whole, _ in ends}) > 1:
            print(f"{name}: the ranks ended with different weights or emotions")
        if dist.get_rank() == 0 and any(whole != resumed for whole, resumed in ends):
            print(f"{name}: the resumed run ended elsewhere than the uninterrupted one")
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # without waiting for the backend's threads


def train_on_a_rank(strategy: str, name: str, checkpoint: Path, options: argparse.Namespace, first: int) -> str:
    """A digest of the whole weights and the emotion at the end of a run from the beginning, or from its checkpoint."""
    sharded = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=1, state_dict_type="SHARDED_STATE_DICT",
        reshard_after_forward=True,
    ) if strategy == "fsdp2" else None  # fmt: skip
    accelerator = Accelerator(cpu=options.device.type == "cpu", fsdp_plugin=sharded)
    module: nn.Module = small_model(torch.device("cpu"))
    inner = make(name, module, emo_sync=options.sync)
    module, optimizer = accelerator.prepare(module, inner)
    if first:
        accelerator.load_state(str(checkpoint))
    for step in range(first, STEPS):
        # Every rank has its own batch, and an outlier now and then, so that the emotion has much to feel.
        generator = torch.Generator().manual_seed(1000 * step + accelerator.process_index)
        inputs = torch.randn(BATCH, WIDTH, generator=generator).to(accelerator.device)
        loss = (module(inputs) - inputs.sum(dim=1, keepdim=True) - (5.0 if step % 7 == 6 else 0.0)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == SAVED_AT:
            accelerator.save_state(str(checkpoint))
    digest = hashlib.sha256(repr(inner.emotion_state()).encode())
    for param in module.parameters():
        whole = param.full_tensor() if isinstance(param, DTensor) else param
        digest.update(whole.detach().cpu().numpy().tobytes())
    return f"{inner.metrics()['emo/observations']} losses felt, {digest.hexdigest()}"


def step(options: argparse.Namespace, found: Found, wrong: Wrong) -> None:
    """Time and memory of a step against the goals, and the share of a copy's bandwidth that it reaches."""
    on_gpu = options.device.type == "cuda"
    sets = benchmark_step.SETS if on_gpu else {"full": [(16, 32), (32,)]}
    args = argparse.Namespace(device=options.device, rounds=15 if on_gpu else 2)
    for name, goal in GOALS.items():
        for parameters, shapes in sets.items():
            case = benchmark_step.Case(partial(FAMILY[name], lr=1e-5))
            result = benchmark_step.measure(case, shapes, args, "step", name, "", parameters)
            said = f"{result.ratio[1]:.2f} of fused AdamW's time"
            found[f"{name}, {parameters}"] = f"{said}, {result.milliseconds:.3f} ms, {result.extra_mib:.1f} MiB beside"
            if on_gpu and parameters == "full" and result.ratio[1] > goal:
                wrong.append(f"{name}: {said}, and the goal is {goal}")
    elements = 10**9 if on_gpu else 10**4
    if on_gpu and torch.cuda.mem_get_info()[0] < 18 * elements + 2**30:
        found["bandwidth"] = "left out: not enough free memory"
        return
    source = torch.ones(min(elements, 1 << 28), device=options.device)
    copied = 8 * source.numel() / min(seconds(partial(source.clone().copy_, source), options.device) for _ in range(7))
    params = benchmark_step.tensors([(elements // 64,)] * 64, options.device)
    move = benchmark_step.stepper(FAMILY["emonavi"](params, lr=1e-5))
    taken = min(seconds(move, options.device) for _ in range(7))
    moved = 28 * sum(param.numel() for param in params)  # the gradient is read; the weight and two averages both ways
    share = moved / taken / copied
    found["bandwidth"] = f"emonavi reaches {share:.2f} of a copy's at {elements:.0e} elements"
    if on_gpu and share < ROOFLINE:
        wrong.append(f"emonavi: {share:.2f} of a copy's bandwidth, and the goal is {ROOFLINE}")


PARTS: dict[str, Callable[[argparse.Namespace, Found, Wrong], None]] = {
    part.__name__: part for part in (tests, stall, scaler, ranks, step)
}


def run_part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One part, guarded: what it found, what went wrong, how long it took."""
    begun = time.perf_counter()
    found: Found = {}
    wrong: Wrong = []
    try:
        PARTS[name](options, found, wrong)
    except Exception:  # noqa: BLE001 — whatever it is, the other parts are worth their time
        wrong.append(traceback.format_exc(limit=-4).strip())
    took = round(time.perf_counter() - begun, 1)
    print(f"\n{name}: {'FAILED' if wrong else 'as it should be'}, {took} s")
    for key, value in found.items():
        print(f"  {key:<40} {value}")
    for line in wrong:
        print("  ! " + line.replace("\n", "\n    "))
    sys.stdout.flush()
    return {"found": found, "wrong": wrong, "seconds": took}


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__, output="gpu_check")
    parser.set_defaults(device=torch.device("cuda"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    parser.add_argument("--sync", choices=("global", "local"), default="global", help=argparse.SUPPRESS)
    parser.add_argument("--as-rank", choices=("ddp", "fsdp2"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.as_rank:
        one_rank(options)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("gpu_check.py needs a GPU, and torch finds none; --device cpu tries the script itself.", file=sys.stderr)
        return 2
    print(machine(options.device, ["triton"]))
    results = {name: run_part(name, options) for name in options.only}
    good = sum(not result["wrong"] for result in results.values())
    print(f"\n{good} of {len(results)} parts as they should be")
    finish(options, {}, results, ["triton"])
    return int(good < len(results))


if __name__ == "__main__":
    sys.exit(main())
