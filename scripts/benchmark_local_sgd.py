"""Autonomous ranks and nodes against DDP: accuracy at equal samples, and what each sends to the others.

    python scripts/benchmark_local_sgd.py --train train.csv --test test.csv --ranks 2 4 --every 1 8 64

The CSV files have the columns `sentence` and `label`. The model is a bag of hashed words, on the CPU. All runs see the
same number of samples in all, and every kind is run with several seeds: median, smallest and largest accuracy.

- `gradients (DDP)`: one emotion, gradients averaged at every step.
- `weights, K=…`: accelerate's LocalSGD, own emotions, weights averaged every K steps; the ranks wait for each other.
- `folder, K=…`: `WeightExchange`, processes that know nothing of each other but a folder. All alike; the last one
  three times slower; the last one starting when the others are half way; the last one leaving half way. The others do
  what it leaves undone.
- `merged at the end`: `average_saved`, nothing before.

Folder runs end with the average of what the nodes have that are there at the end. Their nodes draw from all of the
training data, each in an order of its own. Bytes are what a rank hands to collectives, or writes into the folder.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD
from measuring import arguments, finish, labelled, machine, spread, table
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

from emo_hf import EmoNavi, WeightExchange, average_saved

WORDS, LENGTH, WIDTH, BATCH = 1 << 14, 24, 64, 16
SHARE_OF_THE_LAST = {"all alike": 1.0, "one 3 times slower": 1 / 3, "one late": 0.5, "one leaves": 0.5}


def read(file: str, labels: list[str]) -> TensorDataset:
    """Hashed words, cut or filled up to LENGTH, and labels; new labels are appended to the list."""
    sentences, classes = zip(*labelled(file, labels), strict=True)
    rows = [
        [1 + zlib.crc32(word.lower().encode()) % (WORDS - 1) for word in sentence.split()] + [0] * LENGTH
        for sentence in sentences
    ]
    return TensorDataset(torch.tensor([row[:LENGTH] for row in rows]), torch.tensor(classes))


def model(seed: int, labels: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.EmbeddingBag(WORDS, WIDTH, padding_idx=0), nn.Linear(WIDTH, labels))


class Run:
    """One run: its data, its seed, and the folder to which its processes bring what they have at the end."""

    def __init__(self, data: TensorDataset, labels: int, ranks: int, seed: int, folder: Path, epochs: int, lr: float):
        self.data, self.ranks, self.seed, self.folder, self.epochs, self.lr = data, ranks, seed, folder, epochs, lr
        self.inner = model(seed, labels)
        self.batches = DataLoader(data, batch_size=BATCH, shuffle=True)
        self.size = 4 * sum(param.numel() for param in self.inner.parameters())

    def save(self, rank: int, sent: float) -> None:
        (self.folder / str(rank)).mkdir()
        save_file(self.inner.state_dict(), self.folder / str(rank) / "model.safetensors")
        (self.folder / str(rank) / "sent.txt").write_text(str(sent))

    def start(self, function: Callable[..., None], *given: object) -> None:
        # Forked, so that a run does not begin with the seconds of the imports.
        multiprocessing.start_processes(function, given, nprocs=self.ranks, start_method="fork")

    def rank(self, rank: int, every: int, port: int) -> None:
        """One rank of a process group; `every` = 0 is DDP with one emotion."""
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        accelerator = Accelerator(cpu=True)
        optimizer = EmoNavi(self.inner.parameters(), lr=self.lr, emo_sync="local" if every else "global")
        wrapped, optimizer, loader = accelerator.prepare(self.inner, optimizer, self.batches)
        with LocalSGD(accelerator, wrapped, max(every, 1), enabled=every > 0) as local_sgd:
            for words, label in itertools.chain.from_iterable(itertools.repeat(loader, self.epochs)):
                accelerator.backward(nn.functional.cross_entropy(wrapped(words), label))
                optimizer.step()
                optimizer.zero_grad()
                local_sgd.step()
        steps = self.epochs * len(loader)
        if rank == 0:
            self.save(0, (steps // every + 1) * self.size if every else steps * (self.size + 16))
        dist.barrier()
        os._exit(0)  # torch 2.13 may wait for gloo's threads for ever, holding the lock that they need

    def node(self, node: int, every: int, kind: str) -> None:
        """One node that exchanges weights through a folder; `every` = 0 is not before the end."""
        share, last = SHARE_OF_THE_LAST[kind], node == self.ranks - 1
        whole = self.epochs * len(self.data) / BATCH / (self.ranks - 1 + share)
        steps = round(whole * share if last else whole)
        torch.manual_seed(1000 * self.seed + node)
        optimizer = EmoNavi(self.inner.parameters(), lr=self.lr)
        meeting = self.folder / "exchange"
        if kind == "one late" and last:
            wait_for(meeting / "0.safetensors", round(whole - steps))
        exchange = WeightExchange(self.inner, meeting, node=str(node), every=every or steps + 1)
        if every:
            exchange.join()
        endless = itertools.chain.from_iterable(itertools.repeat(self.batches))
        for words, label in itertools.islice(endless, steps):
            begun = time.monotonic()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.inner(words), label)
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
            exchange.step()
            if kind == "one 3 times slower" and last:
                time.sleep(2 * (time.monotonic() - begun))
        if every:
            exchange.exchange()
        if not (kind == "one leaves" and last):
            self.save(node, (steps // every + 1 if every else 1) * self.size)


def wait_for(file: Path, steps: int) -> None:
    """Until a node has published after so many steps."""
    while True:
        if file.exists():
            with safe_open(file, framework="pt") as published:
                if int(published.metadata()["steps"]) >= steps:
                    return
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def kinds(options: argparse.Namespace) -> dict[str, Callable[[Run], None]]:
    """Name of each kind of run, and what does it."""
    processes = {"gradients (DDP)": 0} | {f"weights, K={steps}": steps for steps in options.every}
    every = options.folder_every
    nodes = {f"folder, K={every}, {kind}": (every, kind) for kind in SHARE_OF_THE_LAST}
    nodes["merged at the end"] = (0, "all alike")

    def of_a_group(run: Run, steps: int) -> None:
        run.start(run.rank, steps, free_port())

    def of_a_folder(run: Run, how: tuple[int, str]) -> None:
        run.start(run.node, *how)

    made: dict[str, Callable[[Run], None]] = {}
    made |= {name: partial(of_a_group, steps=steps) for name, steps in processes.items()}
    made |= {name: partial(of_a_folder, how=how) for name, how in nodes.items()}
    return {name: run for name, run in made.items() if options.only in name}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, output="benchmark_local_sgd")
    parser.add_argument("--train", required=True, help="CSV with the columns sentence and label")
    parser.add_argument("--test", required=True, help="the same, held out")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--every", type=int, nargs="+", default=[1, 8, 64], help="steps between two averages")
    parser.add_argument("--folder-every", type=int, default=8, help="the same for the nodes that share a folder")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--only", default="", help="only the kinds with this in their name")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    names: list[str] = []
    data, held_out = read(options.train, names), read(options.test, names)
    words, labels = held_out.tensors
    print(machine(options.device, ["accelerate"]))
    rows, results = [], []
    for ranks, (name, start) in itertools.product(options.ranks, kinds(options).items()):
        accuracies = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                start(Run(data, len(names), ranks, seed, Path(folder), options.epochs, options.lr))
                ends = [end for end in sorted(Path(folder).iterdir()) if end.name.isdigit()]
                inner = model(seed, len(names))
                inner.load_state_dict(load_file(average_saved(ends, Path(folder, "average")) / "model.safetensors"))
                sent = float((ends[0] / "sent.txt").read_text())
            accuracies.append((inner(words).argmax(dim=1) == labels).double().mean().item())
        rows.append([str(ranks), name, spread(statistics.median(accuracies), accuracies), f"{sent / 1e6:.1f}"])
        results.append({"ranks": ranks, "kind": name, "accuracies": accuracies, "bytes": sent})
        print(*rows[-1], sep="   ", flush=True)
    head = ["ranks", "exchange", "accuracy (smallest … largest)", "MB sent by a rank"]
    finish(options, {"local sgd": table(head, rows)}, results, ["accelerate"])


if __name__ == "__main__":
    main()
