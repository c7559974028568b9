"""The parts of gpu_check.py. Each puts what it finds into one dict and what is wrong into one list, as sentences."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_step
import torch
from measuring import extra_memory, free_memory, in_turns, state_bytes
from torch import nn

from emo_hf import FAMILY, EmoOptimizer
from emo_hf.optim.precision.eight_bits import EIGHT_BITS
from emo_hf.optim.validation import IMPLEMENTATION_OPTIONS

Part = Callable[[argparse.Namespace, dict[str, Any], list[str]], None]

KERNELS = ("elementwise", "fact", "formats", "eight_bits", "optimizers", "trust")
"""What the tests of the Triton kernels are about."""

ROOT = Path(__file__).resolve().parents[1]
FIRST_GENERATIONS = {cls.__name__: cls for cls in FAMILY.values()}
MEASURED = ("EmoNavi", "EmoLynx", "EmoFact")
GOALS = {"EmoNavi v3.1": 1.0, "EmoLynx v3.1": 0.75, "EmoFact v3.1": 0.7}
"""Time of a step on the full set, as a multiple of fused AdamW's."""

ROOFLINE = 0.8
"""Share of a copy's bandwidth that a step should reach at 1e9 elements."""


def in_a_process(*command: str, limit: float) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False,
        env=environment,
    )  # fmt: skip


def pytest(found: dict[str, Any], wrong: list[str], *arguments: str) -> None:
    """Run tests; no test at all is wrong too."""
    done = in_a_process("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments, limit=120)
    lines = done.stdout.strip().splitlines() or ["nothing was printed"]
    found[f"pytest {' '.join(arguments)}"] = lines[-1]
    if done.returncode:
        failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        wrong.append("\n".join([*failures, *(lines[-20:] if not failures else []), done.stderr[-2000:]]).strip())


def kernels(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """The Triton kernels on this device, against their formulas."""
    if options.device.type == "cuda":
        folder = Path("tests/optim/triton")
        pytest(found, wrong, *(str(folder / f"on_device_{name}.py") for name in KERNELS))
    for name, cls in FIRST_GENERATIONS.items():
        optimizer = cls([nn.Parameter(torch.ones(3, device=options.device))])
        group = optimizer.param_groups[0]
        found[f"{name} moves with"] = optimizer._buckets.implementation(group, group["params"][0])


def tests(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """What is skipped without a GPU."""
    if options.device.type == "cuda":
        pytest(found, wrong, "tests/optim/test_moved.py")
        pytest(found, wrong, "tests/optim/test_torch_suite.py", "-k", "cuda or CUDA")
    else:
        found["not shown"] = "these tests need a GPU"


def ways(device: torch.device) -> Iterator[tuple[str, Callable[[nn.Module], EmoOptimizer]]]:
    """Every optimizer in every generation, by all that can be asked for on a device, and in 8 bits."""
    for cls in FAMILY.values():
        for version in cls.versions:
            lr = 10.0 if cls.version_named(version).lr_is_a_scale else 0.01
            known = cls.version_named(version).rule.implementations
            asked: list[dict[str, Any]] = [{}, {"foreach": False, "fused": False, "native": False}]
            asked += [{name: True} for name in IMPLEMENTATION_OPTIONS[:2] if name in known]
            in_8_bits = {"compensate": EIGHT_BITS}
            if cls.version_named(version).rule.eight_bit_state:
                in_8_bits["state"] = EIGHT_BITS
            asked.append(in_8_bits)
            for choice in asked:
                said = ", ".join(f"{key}={value}" for key, value in choice.items() if value) or (
                    "plain" if choice else "its choice"
                )

                def make(
                    module: nn.Module, cls: Any = cls, version: str = version, lr: float = lr, choice: Any = choice
                ) -> EmoOptimizer:
                    if "compensate" in choice:
                        module.bfloat16()
                    made: EmoOptimizer = cls(module.parameters(), lr=lr, version=version, **choice)
                    return made

                yield f"{cls.__name__} {version} ({said})", make


def small_model(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 128), nn.Linear(128, 5), nn.Linear(5, 1)
    return nn.Sequential(*layers).to(device)  # one of the matrices is large enough for state in 8 bits


def stall(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """No optimizer waits for the device between backward and the end of the step, from its third step on."""
    on_gpu = options.device.type == "cuda"
    checked = 0
    for name, make in ways(options.device):
        module = small_model(options.device)
        optimizer = make(module)
        dtype = next(module.parameters()).dtype
        for step in range(5):
            loss = module(torch.randn(4, 16, device=options.device, dtype=dtype)).square().mean()
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
    found["optimizers and implementations" + ("" if on_gpu else " stepped; not shown whether they stall")] = checked


def scaler(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """fp16 autocast with a GradScaler: the weights stay finite, an overflow is a step that is not taken."""
    for name, cls in FIRST_GENERATIONS.items():
        module = small_model(options.device)
        lr = 10.0 if cls.version_named(None).lr_is_a_scale else 0.01
        optimizer = cls(module.parameters(), lr=lr)
        scale = torch.amp.GradScaler(options.device.type, init_scale=2.0**10)
        before: list[torch.Tensor] = []
        for step in range(6):
            with torch.autocast(options.device.type, dtype=torch.float16):
                loss = module(torch.randn(4, 16, device=options.device)).square().mean()
            optimizer.observe(loss)
            scale.scale(loss).backward()
            if step == 4:
                next(module.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
                before = [param.detach().clone() for param in module.parameters()]
            scale.step(optimizer)
            scale.update()
            if step == 4 and not all(map(torch.equal, before, module.parameters())):
                wrong.append(f"{name}: a step was taken although the gradients had overflown")
            optimizer.zero_grad()
        if not all(bool(param.isfinite().all()) for param in module.parameters()):
            wrong.append(f"{name}: weights are not finite after fp16 steps")
    found["optimizers"] = len(FIRST_GENERATIONS)


def trainer(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """Real Trainer jobs that log every step, in turns with `adamw_torch_fused`."""
    few = ["--repeats", "1", "--rounds", "1", "--warmup", "0", "--steps", "1", "--batch", "1", "--length", "4"]
    many = ["--repeats", "2", "--rounds", "8", "--steps", "4"]
    jobs = ["--jobs", "lora", "--only", "emonavi"] if options.quick else ["--only", *map(str.lower, MEASURED)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "trainer"
        command = [str(ROOT / "scripts" / "benchmark_trainer.py"), *jobs, *(few if options.quick else many)]
        done = in_a_process(*command, "--device", str(options.device), "--output", str(output), limit=150)
        if done.returncode:
            wrong.append(done.stderr[-2000:].strip())
            return
        for result in json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["results"]:
            time_ratio, own = result["wall"][1], 100 * result["own_difference"]
            found[f"{result['optim']}, {result['kind']}"] = f"{time_ratio:.3f} of fused AdamW's time; own {own:+.2f} %"


def torchao_peers() -> dict[str, Any]:
    """torchao's optimizers, if it is installed."""
    try:
        library = importlib.import_module("torchao.optim")
    except (ImportError, OSError, RuntimeError):
        return {}
    names = [name for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8") if hasattr(library, name)]
    return {f"torchao {name}": partial(getattr(library, name), lr=1e-5) for name in names}


def release(device: torch.device) -> None:
    """Give back what nothing uses, so that `free_memory` counts it as free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def step(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """benchmark_step.py, ours and the installed peers', against the goals."""
    sets = {"tiny": [(16, 32), (32,)]} if options.quick else benchmark_step.SETS
    args = argparse.Namespace(device=options.device, rounds=2 if options.quick else 15)
    ours = {name: make for name, make in benchmark_step.OURS.items() if name.split()[0] in MEASURED}
    chosen = ours if options.quick else ours | benchmark_step.peers() | torchao_peers()
    for parameters, shapes in sets.items():
        for name, make in chosen.items():
            try:
                result = benchmark_step.measure(name, make, parameters, shapes, args)
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                (wrong if name in ours else found.setdefault("peers left out", [])).append(f"{name}: {error}")
                continue
            found[f"{name}, {parameters}"] = (
                f"{result.ratio:.2f} of fused AdamW's time, {result.milliseconds:.2f} ms, "
                f"{result.bandwidth:.2f} of a copy's bandwidth"
            )
            if parameters == "full" and result.ratio > GOALS.get(name, float("inf")):
                wrong.append(f"{name}: {result.ratio:.2f} of fused AdamW's time, and the goal is {GOALS[name]}")
            release(options.device)


def bandwidth(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """Bytes that a step must move, per second, as a share of a copy's in the same run."""
    largest = 10**4 if options.quick else 10**9
    sizes = [size for size in (10**4, 10**6, 10**8, 3 * 10**8, 10**9) if size <= largest]
    for size in sizes:
        copied = benchmark_step.copy_bandwidth(min(size, 1 << 28), options.device)
        for name in MEASURED:
            for dtype in (torch.float32, torch.bfloat16):
                needed = size * (
                    2 * dtype.itemsize + {"EmoNavi": 2, "EmoLynx": 1, "EmoFact": 0}[name] * dtype.itemsize
                )
                if 1.1 * needed + 2**30 > free_memory(options.device):
                    found[f"{name}, {dtype}, {size:.0e}"] = "left out: not enough free memory"
                    continue
                share, took = _share_of(copied, FIRST_GENERATIONS[name], size, dtype, options.device)
                found[f"{name}, {dtype}, {size:.0e}"] = (
                    f"{share:.2f} of a copy's {copied / 1e9:.0f} GB/s, {took:.3f} ms"
                )
                if size == 10**9 and share < ROOFLINE and dtype is torch.float32:
                    wrong.append(f"{name}: {share:.2f} of a copy's bandwidth at 1e9 elements, the goal is {ROOFLINE}")
                release(options.device)


def _share_of(
    copied: float, cls: type[EmoOptimizer], size: int, dtype: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """What a step reaches, and its milliseconds. EmoFact must read each gradient twice."""
    params = [
        nn.Parameter(torch.zeros(benchmark_step._matrix(size // 64), device=device, dtype=dtype)) for _ in range(64)
    ]
    for param in params:
        param.grad = torch.full_like(param, 0.01)
    optimizer = cls(params, lr=1e-5)
    run = benchmark_step.stepper(optimizer)
    run()
    run()
    taken = in_turns([run], 5, device)[0]
    elements = sum(param.numel() for param in params)
    reads = 2 if cls.__name__ == "EmoFact" else 1
    moved = (2 + reads) * dtype.itemsize * elements + 2 * state_bytes(optimizer)
    return moved / taken / copied, 1e3 * taken


def memory(options: argparse.Namespace, found: dict[str, Any], wrong: list[str]) -> None:
    """State per parameter, and the peak of what a step takes and gives back, which should be next to nothing."""
    shapes = [(64, 64)] * 2 if options.quick else benchmark_step.FULL
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    each: list[dict[str, Any]] = [{}, {"dtype": torch.bfloat16}, {"dtype": torch.bfloat16, "compensate": True}]
    each += [{"dtype": torch.bfloat16, "compensate": "8bit", "state": "8bit"}]
    for name in MEASURED:
        for kept in each:
            dtype = kept.get("dtype", torch.float32)
            own = {key: value for key, value in kept.items() if key != "dtype"}
            if name == "EmoFact":
                own.pop("state", None)
            params = [
                nn.Parameter(param.detach().to(dtype)) for param in benchmark_step.tensors(shapes, options.device)
            ]
            for param in params:
                param.grad = torch.full_like(param, 0.01)
            optimizer = FIRST_GENERATIONS[name](params, lr=1e-5, **own)
            run = benchmark_step.stepper(optimizer)
            run()
            extra = extra_memory(run, options.device)
            said = ", ".join([str(dtype).removeprefix("torch."), *(f"{key}={value}" for key, value in own.items())])
            per = state_bytes(optimizer) / elements
            found[f"{name}, {said}"] = f"{per:.2f} bytes of state per parameter, {extra / 2**20:.1f} MiB beside"
            if options.device.type == "cuda" and extra > 0.1 * elements * dtype.itemsize:
                wrong.append(f"{name}, {said}: a step takes {extra / 2**20:.0f} MiB beside the state")
            release(options.device)


PARTS: dict[str, Part] = {
    "kernels": kernels,
    "tests": tests,
    "stall": stall,
    "scaler": scaler,
    "trainer": trainer,
    "step": step,
    "bandwidth": bandwidth,
    "memory": memory,
}
