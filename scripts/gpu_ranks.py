"""What only GPUs can show of many ranks. NOT RUN YET on a GPU: none was at hand when it was written.

    python scripts/gpu_ranks.py                  # as many ranks as there are GPUs, at least 2
    python scripts/gpu_ranks.py --cpu            # the same code with gloo on CPUs, as far as that goes: DDP
    python scripts/gpu_ranks.py --emo_sync local # the checks have to fail: every rank follows its own loss

- `ddp`: an accelerate loop over NCCL. Weights and emotion are bit-identical on all ranks, a checkpoint of
  `accelerator.save_state` goes on to where the uninterrupted run ends, to the last bit.
- `fsdp2`: the same with accelerate's FSDP2 plugin and sharded state dicts. accelerate does that on GPUs only.
- `no stall`: on one GPU `optimizer.step()` returns while backward is still at work, and calls nothing that waits for
  the device as torch sees it (`torch.cuda.set_sync_debug_mode("error")`).

Prints a line for each and exits with 0 if all hold, 1 if one does not, 2 if there are not enough GPUs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import multiprocessing, nn
from torch.distributed.tensor import DTensor

from emo_hf import FAMILY, EmoOptimizer

OPTIMIZERS = {f"{cls.__name__} {version}": (cls, version) for cls in FAMILY.values() for version in cls.versions}
"""Every optimizer in each of its generations."""

STEPS, SAVED_AT, BATCH, WIDTH = 40, 20, 4, 16


def accelerator_for(strategy: str, cpu: bool) -> Accelerator:
    plugin = None
    if strategy == "fsdp2":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="size_based_wrap",
            min_num_params=1,
            state_dict_type="SHARDED_STATE_DICT",
            reshard_after_forward=True,
        )
    return Accelerator(cpu=cpu, fsdp_plugin=plugin)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 33), nn.Tanh(), nn.Linear(33, 5), nn.Linear(5, 1))


def steps(accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, span: range) -> None:
    """Every rank has its own share of a batch, and an outlier now and then, so that the emotion has much to feel."""
    for step in span:
        generator = torch.Generator().manual_seed(1000 * step + accelerator.process_index)
        inputs = torch.randn(BATCH, WIDTH, generator=generator).to(accelerator.device)
        loss = (module(inputs) - inputs.sum(dim=1, keepdim=True) - (5.0 if step % 7 == 6 else 0.0)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def digest(module: nn.Module, inner: EmoOptimizer) -> str:
    """Of the whole weights, the emotion of this rank, and what its rule keeps."""
    done = hashlib.sha256(repr(inner.emotion_state()).encode())
    for param in module.parameters():
        whole = param.full_tensor() if isinstance(param, DTensor) else param
        done.update(whole.detach().cpu().numpy().tobytes())
    return done.hexdigest()


def chosen(options: argparse.Namespace) -> list[str]:
    return [name for name in OPTIMIZERS if options.only in name]


def make(name: str, module: nn.Module, **options: Any) -> EmoOptimizer:
    """An optimizer at a learning rate of 0.01, or at such a scale."""
    cls, version = OPTIMIZERS[name]
    lr = 10.0 if cls.version_named(version).lr_is_a_scale else 0.01
    return cls(module.parameters(), lr=lr, weight_decay=0.1, version=version, **options)


def run(strategy: str, name: str, folder: Path, options: argparse.Namespace, first: int = 0) -> tuple[str, float]:
    """Digest and number of losses felt at the end of a run from its beginning, or from the checkpoint at `first`."""
    accelerator = accelerator_for(strategy, options.cpu)
    module = model()
    inner = make(name, module, emo_sync=options.emo_sync)
    module, optimizer = accelerator.prepare(module, inner)
    checkpoint = folder / f"{strategy} {name}"
    if first:
        accelerator.load_state(str(checkpoint))
    else:
        steps(accelerator, module, optimizer, range(SAVED_AT))
        accelerator.save_state(str(checkpoint))
    steps(accelerator, module, optimizer, range(SAVED_AT, STEPS))
    return digest(module, inner), inner.metrics()["emo/observations"]


def rank(index: int, world: int, port: int, strategy: str, folder: str, options: argparse.Namespace) -> None:
    """One rank: each optimizer's run and its resumption; rank 0 prints what is wrong, and all end with it."""
    os.environ |= {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    wrong = []
    for name in chosen(options):
        whole, observations = run(strategy, name, Path(folder), options)
        resumed, _ = run(strategy, name, Path(folder), options, first=SAVED_AT)
        ends: list[tuple[str, str]] = [("", "")] * world
        dist.all_gather_object(ends, (whole, resumed))
        if len({end for end, _ in ends}) > 1:
            wrong.append(f"{name}: the ranks ended with different weights or emotions")
        if any(end != after for end, after in ends):
            wrong.append(f"{name}: the resumed run ended elsewhere than the uninterrupted one")
        if observations != STEPS:
            wrong.append(f"{name}: {observations} losses were felt in {STEPS} steps")
    if index == 0:
        report(f"{strategy}, {world} ranks, {dist.get_backend()}", wrong)
    dist.barrier()
    sys.stdout.flush()
    os._exit(1 if wrong else 0)  # without waiting for the backend's threads


def ranks(world: int, strategy: str, options: argparse.Namespace) -> bool:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, port, strategy, folder, options)
        try:
            # CUDA does not survive a fork; without it, ranks need not import everything anew.
            method = "fork" if options.cpu else "spawn"
            multiprocessing.start_processes(rank, arguments, nprocs=world, start_method=method)
        except multiprocessing.ProcessRaisedException as error:
            return report(strategy, [str(error)])
        except multiprocessing.ProcessExitedException:  # rank 0 has said why
            return False
    return True


def no_stall(options: argparse.Namespace) -> bool:
    """Whether a step returns before the backward pass is done on the device."""
    wrong = []
    for name in chosen(options):
        module = model().cuda()
        optimizer = make(name, module)
        for step in range(5):
            loss = module(torch.randn(BATCH, WIDTH, device="cuda")).square().mean()
            optimizer.observe(loss)
            loss.backward()
            if step > 1:
                torch.cuda.synchronize()
                torch.cuda._sleep(10**9)  # cycles, about half a second: a long backward pass
                begun = time.perf_counter()
                torch.cuda.set_sync_debug_mode("error")
            try:
                optimizer.step()
            except RuntimeError as error:
                wrong.append(f"{name}: {error}")
            finally:
                torch.cuda.set_sync_debug_mode("default")
            if step > 1 and time.perf_counter() - begun > 0.1:
                wrong.append(f"{name}: a step took {time.perf_counter() - begun:.3f} s beside a busy device")
            optimizer.zero_grad()
            torch.cuda.synchronize()
    return report("no stall, 1 GPU", wrong)


def report(name: str, wrong: list[str]) -> bool:
    print(f"{name}: {'; '.join(dict.fromkeys(wrong)) or 'as it should be'}", flush=True)
    return not wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="DDP with gloo on CPUs, and nothing else")
    parser.add_argument("--ranks", type=int, help="number of ranks; as many as there are GPUs, or 2 with --cpu")
    parser.add_argument("--emo_sync", default="global", choices=("global", "local"))
    parser.add_argument("--only", default="", help="only the optimizers with this in their name, as in 'EmoNavi v3.1'")
    options = parser.parse_args(arguments)
    if options.cpu:
        held = ranks(options.ranks or 2, "ddp", options)
        print("fsdp2, no stall: not shown, they need GPUs")
        return 0 if held else 1
    world = options.ranks or max(2, torch.cuda.device_count())
    if torch.cuda.device_count() < world:
        found = torch.cuda.device_count()
        print(f"gpu_ranks.py needs {world} GPUs and found {found}; --cpu shows what CPUs can show.", file=sys.stderr)
        return 2
    held = [ranks(world, strategy, options) for strategy in ("ddp", "fsdp2")]
    return 0 if all([*held, no_stall(options)]) else 1


if __name__ == "__main__":
    sys.exit(main())
