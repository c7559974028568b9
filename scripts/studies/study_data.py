"""Reads what the tasks learn from, makes batches of it, and cuts what is held out in two."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from emo_hf.study.task import HALVES

PLACE = "EMO_HF_DATA"
SPLIT = 0  # seed of everything that is the same in all runs


def path(*parts: str) -> Path:
    """A file of the data.

    Raises:
        FileNotFoundError: saying where it was looked for.
    """
    found = Path(os.environ.get(PLACE, "data"), *parts)
    if not found.is_file():
        raise FileNotFoundError(
            f"there is no {str(found)!r}: python scripts/get_study_data.py fetches it; {PLACE} names another folder"
        )
    return found


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halves(examples: torch.Tensor) -> dict[str, torch.Tensor]:
    """The numbers of the examples that are held out, in two halves that are the same in all runs."""
    drawn = examples[torch.randperm(len(examples), generator=generator(SPLIT))]
    return dict(zip(HALVES, (drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]), strict=True))


def chance(labels: torch.Tensor) -> float:
    """The loss of whoever knows how frequent each label is, and nothing else."""
    shares = torch.bincount(labels).double() / len(labels)
    return -float((shares * shares.clamp(min=1e-12).log()).sum())


def beside(model: nn.Module, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors on the device of a model."""
    device = next(model.parameters()).device
    return [tensor.to(device) for tensor in tensors]


def judged(scores: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Cross-entropy and accuracy of a classifier's scores, (examples, classes)."""
    accuracy = (scores.argmax(1) == right).float().mean().item()
    return {"loss": functional.cross_entropy(scores, right).item(), "accuracy": accuracy}


def rows(*parts: str) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    with path(*parts).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def json_lines(*parts: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path(*parts).read_text(encoding="utf-8").splitlines()]


def idx(*parts: str) -> torch.Tensor:
    """An array of bytes in MNIST's format."""
    data = gzip.decompress(path(*parts).read_bytes())
    size = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(data[3])]
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * len(size)).reshape(size).copy())


def word_ids(texts: Sequence[Sequence[str]], *, known: int, length: int) -> torch.Tensor:
    """Words as numbers, (texts, length): 0 pads, 1 stands for all but the `known` most frequent ones."""
    counts = Counter(word for text in texts for word in text)
    vocabulary = {word: number for number, (word, _) in enumerate(counts.most_common(known), 2)}
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        for place, word in enumerate(text[:length]):
            ids[row, place] = vocabulary.get(word, 1)
    return ids


def with_noise(labels: torch.Tensor, share: float, classes: int) -> torch.Tensor:
    """Labels, a share of which is drawn anew; the same ones in every run."""
    drawn = generator(SPLIT)
    chosen = torch.rand(labels.shape, generator=drawn) < share
    return torch.where(chosen, torch.randint(classes, labels.shape, generator=drawn), labels)


def epochs(parts: Callable[[torch.Tensor], Any], examples: int, batch: int) -> Callable[[int], Iterator[Any]]:
    """Batches without the last, smaller one, in the order of a seed.

    Args:
        parts: indices of examples → the batch of them.
        examples: how many there are.
        batch: examples a batch.
    """

    def one_pass(seed: int) -> Iterator[Any]:
        for chosen in torch.randperm(examples, generator=generator(seed)).split(batch):
            if len(chosen) == batch:
                yield parts(chosen)

    return one_pass


def windows(text: torch.Tensor, batch: int, length: int, count: int) -> Callable[[int], Iterator[Any]]:
    """`count` batches of stretches of a text, each with the one token more that it predicts."""

    def one_pass(seed: int) -> Iterator[tuple[torch.Tensor]]:
        drawn = generator(seed)
        for _ in range(count):
            starts = torch.randint(len(text) - length, (batch,), generator=drawn)
            yield (text[starts[:, None] + torch.arange(length + 1)],)

    return one_pass


def half_way(
    first: Callable[[int], Iterator[Any]], second: Callable[[int], Iterator[Any]], steps: int
) -> Callable[[int], Iterator[Any]]:
    """Batches of the first kind for `steps` steps, then of the second."""

    def both(seed: int) -> Iterator[Any]:
        for batches in (first, second):
            passes = (batches(seed + 7919 * again) for again in itertools.count())
            yield from itertools.islice(itertools.chain.from_iterable(passes), steps)

    return both
