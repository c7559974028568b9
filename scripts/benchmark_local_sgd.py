"""Autonomous ranks against DDP: accuracy at equal samples, and what the ranks send each other.

    python scripts/benchmark_local_sgd.py --train train.csv --test test.csv --ranks 2 4 --every 1 8 64

The CSV files have the columns `sentence` and `label`. The model is a bag of hashed words; every rank has its own
part of the training data, on the CPU. Bytes are what a rank hands to collectives: gradients and one loss per step
under DDP, the weights every K steps with local SGD.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import statistics
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD
from torch import Tensor, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

from emo_hf import EmoNavi

WORDS, LENGTH, WIDTH = 1 << 14, 24, 64
BATCH = 16


def read(file: str, labels: list[str]) -> tuple[Tensor, Tensor]:
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


def train(rank: int, ranks: int, every: int, seed: int, options: argparse.Namespace, port: int, result: str) -> None:
    """One rank of one run; `every` = 0 is DDP with one emotion. Rank 0 writes accuracy and bytes."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    labels: list[str] = []
    data, held_out = read(options.train, labels), read(options.test, labels)
    accelerator = Accelerator(cpu=True)
    inner = nn.Sequential(nn.EmbeddingBag(WORDS, WIDTH, padding_idx=0), nn.Linear(WIDTH, len(labels)))
    loader = DataLoader(TensorDataset(*data), batch_size=BATCH, shuffle=True)
    optimizer = EmoNavi(inner.parameters(), lr=options.lr, emo_sync="local" if every else "global")
    model, optimizer, loader = accelerator.prepare(inner, optimizer, loader)
    steps = 0
    with LocalSGD(accelerator, model, max(every, 1), enabled=every > 0) as local_sgd:
        for _ in range(options.epochs):
            for words, label in loader:
                accelerator.backward(nn.functional.cross_entropy(model(words), label))
                optimizer.step()
                optimizer.zero_grad()
                local_sgd.step()
                steps += 1
    exchanges = steps // every + 1 if every else steps
    weights = sum(param.numel() for param in inner.parameters()) * 4
    with torch.no_grad():
        accuracy = (inner(held_out[0]).argmax(dim=1) == held_out[1]).double().mean().item()
    if rank == 0:
        Path(result).write_text(f"{accuracy} {exchanges * weights + (0 if every else 16 * steps)}")
    dist.destroy_process_group()


def run(ranks: int, every: int, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Accuracy and bytes of one run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "result")
        multiprocessing.spawn(train, (ranks, every, seed, options, port, result), nprocs=ranks)
        accuracy, sent = Path(result).read_text().split()
    return float(accuracy), float(sent)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="CSV with the columns sentence and label")
    parser.add_argument("--test", required=True, help="the same, held out")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--every", type=int, nargs="+", default=[1, 8, 64], help="steps between two averages")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind")
    options = parser.parse_args(arguments)
    print("ranks  exchange         accuracy (each seed)        MB sent by a rank")
    for ranks in options.ranks:
        for every in (0, *options.every):
            results = [run(ranks, every, seed, options) for seed in range(options.seeds)]
            accuracies = [accuracy for accuracy, _ in results]
            name = f"weights, K={every}" if every else "gradients (DDP)"
            each = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
            print(f"{ranks:5}  {name:15}  {statistics.mean(accuracies):.3f} ({each})".ljust(52), end="")
            print(f"{results[0][1] / 1e6:10.1f}", flush=True)


if __name__ == "__main__":
    main()
