"""Autonomous ranks and nodes against DDP: accuracy at equal samples, and what each sends to the others.

    python scripts/benchmark_local_sgd.py --train train.csv --test test.csv --ranks 2 4 --every 1 8 64

The CSV files have the columns `sentence` and `label`; the README beside this file has commands that make some. The
model is a bag of hashed words, on the CPU. All runs see the same number of samples in all, and every kind is run with
several seeds: median, smallest and largest accuracy.

- `gradients (DDP)`: one emotion, gradients averaged at every step.
- `weights, K=…`: accelerate's LocalSGD, own emotions, weights averaged every K steps; the ranks wait for each other.
- `folder, K=…`: `WeightExchange`, processes that know nothing of each other but a folder. All the same;
  the last one three times slower (it sleeps after every step for twice as long as that took); the last one starting
  when the others are half way; the last one leaving half way. The others do what it leaves undone.
- `merged at the end`: `average_saved`, nothing before.

Folder runs end with the average of what the nodes have that are there at the end. Their nodes draw from all of the
training data, each in an order of its own. Bytes are what a rank hands to collectives, or writes into the folder.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import socket
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

from emo_hf import EmoNavi, WeightExchange, average_saved

WORDS, LENGTH, WIDTH = 1 << 14, 24, 64
BATCH = 16
SHARE_OF_THE_LAST = {"all alike": 1.0, "one 3 times slower": 1 / 3, "one late": 0.5, "one leaves": 0.5}
Data = tuple[Tensor, Tensor]


def read(file: str, labels: list[str]) -> Data:
    """Hashed words, cut or filled up to LENGTH, and labels; new labels are appended to the list."""
    rows, classes = [], []
    with open(file, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            words = [1 + zlib.crc32(word.lower().encode()) % (WORDS - 1) for word in row["sentence"].split()]
            rows.append((words + [0] * LENGTH)[:LENGTH])
            if row["label"] not in labels:
                labels.append(row["label"])
            classes.append(labels.index(row["label"]))
    return torch.tensor(rows), torch.tensor(classes)


def model(seed: int, labels: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.EmbeddingBag(WORDS, WIDTH, padding_idx=0), nn.Linear(WIDTH, labels))


def save(inner: nn.Module, folder: Path, sent: float) -> None:
    folder.mkdir()
    save_file(inner.state_dict(), folder / "model.safetensors")
    (folder / "sent.txt").write_text(str(sent))


def size(inner: nn.Module) -> int:
    return sum(param.numel() for param in inner.parameters()) * 4


class Run:
    """One run: its data, its seed, and the folder to which its processes bring what they have at the end."""

    def __init__(self, data: Data, labels: int, ranks: int, seed: int, folder: Path, options: argparse.Namespace):
        self.data, self.labels, self.ranks, self.seed = data, labels, ranks, seed
        self.folder, self.epochs, self.lr = folder, options.epochs, options.lr

    def rank(self, rank: int, every: int, port: int) -> None:
        """One rank of a process group; `every` = 0 is DDP with one emotion."""
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        accelerator = Accelerator(cpu=True)
        inner = model(self.seed, self.labels)
        loader = DataLoader(TensorDataset(*self.data), batch_size=BATCH, shuffle=True)
        optimizer = EmoNavi(inner.parameters(), lr=self.lr, emo_sync="local" if every else "global")
        wrapped, optimizer, loader = accelerator.prepare(inner, optimizer, loader)
        steps = 0
        with LocalSGD(accelerator, wrapped, max(every, 1), enabled=every > 0) as local_sgd:
            for _ in range(self.epochs):
                for words, label in loader:
                    accelerator.backward(nn.functional.cross_entropy(wrapped(words), label))
                    optimizer.step()
                    optimizer.zero_grad()
                    local_sgd.step()
                    steps += 1
        exchanges = steps // every + 1 if every else steps
        if rank == 0:
            save(inner, self.folder / "0", exchanges * size(inner) + (0 if every else 16 * steps))
        dist.barrier()
        # Not by returning: DDP's reducer is freed under the interpreter's lock and waits for gloo's threads, which may
        # want that lock to free their tensors (torch 2.13); seen to hang for ever.
        os._exit(0)

    def node(self, node: int, every: int, kind: str) -> None:
        """One node that exchanges weights through a folder; `every` = 0 is not before the end."""
        share, last = SHARE_OF_THE_LAST[kind], node == self.ranks - 1
        whole = self.epochs * len(self.data[0]) / BATCH / (self.ranks - 1 + share)
        steps = round(whole * share if last else whole)
        inner = model(self.seed, self.labels)
        torch.manual_seed(1000 * self.seed + node)
        optimizer = EmoNavi(inner.parameters(), lr=self.lr)
        meeting = self.folder / "exchange"
        if kind == "one late" and last:
            wait_for(meeting / "0.safetensors", round(whole - steps))
        exchange = WeightExchange(inner, meeting, node=str(node), every=every or steps + 1)
        if every:
            exchange.join()
        batches = DataLoader(TensorDataset(*self.data), batch_size=BATCH, shuffle=True)
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        for words, label in itertools.islice(endless, steps):
            begun = time.monotonic()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(inner(words), label)
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
            exchange.step()
            if kind == "one 3 times slower" and last:
                time.sleep(2 * (time.monotonic() - begun))
        if every:
            exchange.exchange()
        if not (kind == "one leaves" and last):
            save(inner, self.folder / str(node), (steps // every + 1 if every else 1) * size(inner))


def wait_for(file: Path, steps: int) -> None:
    """Until a node has published after so many steps."""
    while True:
        if file.exists():
            with safe_open(file, framework="pt") as published:
                if int(published.metadata()["steps"]) >= steps:
                    return
        time.sleep(0.02)


def start(function: Callable[..., None], ranks: int, *arguments: object) -> None:
    # Forked, so that a run does not begin with the seconds of the imports.
    multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method="fork")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def kinds(options: argparse.Namespace) -> dict[str, Callable[[Run], None]]:
    """Name of each kind of run, and what does it."""
    every = options.folder_every
    made: dict[str, Callable[[Run], None]] = {
        "gradients (DDP)": lambda run: start(run.rank, run.ranks, 0, free_port()),
    }
    for steps in options.every:
        made[f"weights, K={steps}"] = lambda run, k=steps: start(run.rank, run.ranks, k, free_port())
    for kind in SHARE_OF_THE_LAST:
        made[f"folder, K={every}, {kind}"] = lambda run, kind=kind: start(run.node, run.ranks, every, kind)
    made["merged at the end"] = lambda run: start(run.node, run.ranks, 0, "all alike")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="CSV with the columns sentence and label")
    parser.add_argument("--test", required=True, help="the same, held out")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--every", type=int, nargs="+", default=[1, 8, 64], help="steps between two averages")
    parser.add_argument("--folder_every", type=int, default=8, help="the same for the nodes that share a folder")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--only", default="", help="only the kinds with this in their name")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names: list[str] = []
    data, held_out = read(options.train, names), read(options.test, names)
    print("ranks  exchange                          accuracy (smallest, largest)  MB sent by a rank")
    for ranks in options.ranks:
        for name, function in kinds(options).items():
            if options.only not in name:
                continue
            accuracies = []
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    function(Run(data, len(names), ranks, seed, Path(folder), options))
                    ends = [end for end in sorted(Path(folder).iterdir()) if end.name.isdigit()]
                    inner = model(seed, len(names))
                    inner.load_state_dict(
                        load_file(average_saved(ends, Path(folder, "average")) / "model.safetensors")
                    )
                    sent = float((ends[0] / "sent.txt").read_text())
                with torch.no_grad():
                    right = inner(held_out[0]).argmax(dim=1) == held_out[1]
                accuracies.append(right.double().mean().item())
            spread = f"{statistics.median(accuracies):.3f} ({min(accuracies):.3f}, {max(accuracies):.3f})"
            print(f"{ranks:5}  {name:34}{spread:30}{sent / 1e6:17.1f}", flush=True)


if __name__ == "__main__":
    main()
