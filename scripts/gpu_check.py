"""Everything that waits for a GPU, in one command of under 10 minutes. NOT RUN YET on a GPU: none was at hand.

    python scripts/gpu_check.py                      # a machine with a GPU; with two or more, many ranks as well
    python scripts/gpu_check.py --only stall ranks   # some of the parts
    python scripts/gpu_check.py --device cpu         # the script itself: what it finds says nothing about a GPU

It needs this checkout with its installed test extra, and no network. Prints a line for each figure and writes all to
`--output` as JSON. A part that fails ends no other one. Exits with 0 if all went well, 1 if a part failed, 2 if there
is no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_step
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from measuring import arguments, finish, machine, seconds
from torch import multiprocessing, nn
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

ON_DEVICE = ("elementwise", "fact", "formats", "eight_bits", "optimizers")
"""What the tests of the Triton kernels are about."""

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
    kernels = [str(Path("tests/optim/triton", f"on_device_{name}.py")) for name in ON_DEVICE]
    for chosen in (kernels, ["tests/optim/test_moved.py"], ["tests/optim/test_torch_suite.py", "-k", "cuda or CUDA"]):
        done = run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *chosen, limit=180)
        lines = done.stdout.strip().splitlines() or ["nothing was printed"]
        found[f"pytest {' '.join(chosen)}"] = lines[-1]
        if done.returncode:  # no test at all is wrong too
            failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            wrong.append("\n".join([*(failures or lines[-20:]), done.stderr[-2000:]]).strip())


def ways(device: torch.device) -> Iterator[tuple[str, nn.Module, EmoOptimizer]]:
    """Every optimizer in every generation, by its own choice and by whatever else can be asked for."""
    asked: list[dict[str, Any]] = [
        {},
        {"foreach": False, "fused": False, "native": False},
        {"foreach": True},
        {"fused": True},
        {"compensate": "8bit", "state": "8bit"},
    ]
    for name in OPTIMIZERS:
        for choice in asked:
            module = small_model(device)
            if "compensate" in choice:
                module.bfloat16()
            try:
                optimizer = make(name, module, **choice)
            except ValueError:
                if choice in asked[:2]:  # everybody has these
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
    for strategy in ("ddp",) if on_cpu else ("ddp", "fsdp2"):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        with tempfile.TemporaryDirectory() as folder:
            # CUDA does not survive a fork; without it, ranks need not import everything anew.
            started = multiprocessing.start_processes(
                one_rank, (world, port, strategy, folder, options), nprocs=world, join=False,
                start_method="fork" if on_cpu else "spawn",
            )  # fmt: skip
            for process in started.processes:
                process.join(240)
                process.kill()
            said = Path(folder, "wrong.json")
            told = json.loads(said.read_text()) if said.exists() else ["the ranks ended without a word"]
        found[f"{strategy}, {world} ranks"] = "as it should be" if not told else "not as it should be"
        wrong += [f"{strategy}: {line}" for line in told]


def one_rank(index: int, world: int, port: int, strategy: str, folder: str, options: argparse.Namespace) -> None:
    """One rank: each optimizer's run and its resumption; rank 0 writes down what is wrong."""
    os.environ |= {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    wrong = []
    for name in OPTIMIZERS if options.sync == "global" else list(OPTIMIZERS)[:1]:
        train = partial(train_on_a_rank, strategy, name, Path(folder, f"{strategy} {name}"), options)
        ends: list[Any] = [None] * world
        dist.all_gather_object(ends, (train(0), train(SAVED_AT)))
        if len({whole for whole, _ in ends}) > 1:
            wrong.append(f"{name}: the ranks ended with different weights or emotions")
        if any(whole != resumed for whole, resumed in ends):
            wrong.append(f"{name}: the resumed run ended elsewhere than the uninterrupted one")
    if index == 0:
        Path(folder, "wrong.json").write_text(json.dumps(wrong))
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
    sets = benchmark_step.SETS if on_gpu else {"tiny": [(16, 32), (32,)]}
    args = argparse.Namespace(device=options.device, rounds=15 if on_gpu else 2)
    for name, goal in GOALS.items():
        for parameters, shapes in sets.items():
            case = benchmark_step.Case(partial(FAMILY[name], lr=1e-5))
            result = benchmark_step.measure(case, shapes, args, "step", name, "", parameters)
            found[f"{name}, {parameters}"] = (
                f"{result.ratio[1]:.2f} of fused AdamW's time, {result.milliseconds:.3f} ms, {result.state_bytes:.2f} "
                f"bytes of state per parameter, {result.extra_mib:.1f} MiB beside"
            )
            if on_gpu and parameters == "full" and result.ratio[1] > goal:
                wrong.append(f"{name}: {result.ratio[1]:.2f} of fused AdamW's time, and the goal is {goal}")
    for elements in (10**8, 10**9) if on_gpu else (10**4,):
        if on_gpu and torch.cuda.mem_get_info()[0] < 18 * elements + 2**30:
            found[f"bandwidth at {elements:.0e} elements"] = "left out: not enough free memory"
            continue
        share = bandwidth(elements, options.device)
        found[f"bandwidth at {elements:.0e} elements"] = f"emonavi reaches {share:.2f} of a copy's"
        if on_gpu and elements == 10**9 and share < ROOFLINE:
            wrong.append(f"emonavi: {share:.2f} of a copy's bandwidth, and the goal is {ROOFLINE}")


def bandwidth(elements: int, device: torch.device) -> float:
    """Bytes per second that a step of EmoNavi must move, as a share of what a copy moves."""
    source = torch.ones(min(elements, 1 << 28), device=device)
    target = torch.empty_like(source)
    copied = 8 * source.numel() / min(seconds(partial(target.copy_, source), device) for _ in range(7))
    params = benchmark_step.tensors([(elements // 64,)] * 64, device)
    move = benchmark_step.stepper(FAMILY["emonavi"](params, lr=1e-5))
    taken = min(seconds(move, device) for _ in range(7))
    return (
        28 * sum(param.numel() for param in params) / taken / copied
    )  # gradient read; weight, two averages both ways


def trainer(options: argparse.Namespace, found: Found, wrong: Wrong) -> None:
    """Real Trainer jobs that log every step."""
    few = ["--jobs", "lora", "--only", "emonavi", "--rounds", "1", "--steps", "1", "--batch", "1", "--length", "4"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "trainer.json")
        command = [str(ROOT / "scripts" / "benchmark_trainer.py"), *(few if options.device.type == "cpu" else [])]
        done = run(*command, "--device", str(options.device), "--output", str(output), limit=240)
        if done.returncode:
            wrong.append(done.stderr[-2000:].strip())
            return
        for result in json.loads(output.read_text(encoding="utf-8"))["results"]:
            said = f"{result['time']:.3f} of fused AdamW's time; own {100 * result['own']:+.2f} %"
            found[f"{result['optim']}, {result['kind']}"] = said


PARTS: dict[str, Callable[[argparse.Namespace, Found, Wrong], None]] = {
    part.__name__: part for part in (tests, stall, scaler, ranks, step, trainer)
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
    options = parser.parse_args(argv)
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
