"""Digits: MNIST's 10,000 test images, 7,000 to learn from and 3,000 to judge by."""

from __future__ import annotations

import torch
from study_data import SPLIT, beside, chance, epochs, generator, half_way, halves, idx, judged, with_noise
from torch import nn
from torch.nn import functional

from emo_hf.study.task import JUDGE, Task

TRAINING = 7000


def digits(seed: int, noise: float = 0.0, batch: int = 64, shift_at: int = 0) -> Task:
    """A perceptron with one hidden layer of 64.

    Args:
        seed: of the weights, which torch has been seeded with.
        noise: share of the training labels that are drawn anew.
        batch: images a step.
        shift_at: the step from which on every label means another digit; 0 for never.
    """
    return _task(nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)), noise, batch, shift_at)


def digits_conv(seed: int, noise: float = 0.0, batch: int = 32) -> Task:
    """Two convolutions with batch normalization, one linear layer."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(784, 10),
    )
    return _task(net, noise, batch)


def mnist() -> tuple[torch.Tensor, torch.Tensor]:
    """Images, (10000, 28, 28), bytes, and which digits they are; the first `TRAINING` are those to learn from."""
    images = idx("mnist_t10k", "t10k-images-idx3-ubyte.gz")
    labels = idx("mnist_t10k", "t10k-labels-idx1-ubyte.gz").long()
    order = torch.randperm(len(labels), generator=generator(SPLIT))
    return images[order], labels[order]


def _task(net: nn.Module, noise: float, batch: int, shift_at: int = 0) -> Task:
    pixels, labels = mnist()
    images = pixels.float().div(255).sub(0.13).div(0.31).unsqueeze(1)
    learned = with_noise(labels[:TRAINING], noise, 10)
    batches = epochs(lambda chosen: (images[chosen], learned[chosen]), TRAINING, batch)
    meant, held_out = labels, halves(torch.arange(TRAINING, len(labels)))
    if shift_at:
        other = (learned + 1) % 10
        batches = half_way(batches, epochs(lambda chosen: (images[chosen], other[chosen]), TRAINING, batch), shift_at)
        meant = (labels + 1) % 10

    def loss(model: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(model(pair[0]), pair[1])

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        pixels, right = beside(model, images[held_out[half]], meant[held_out[half]])
        return judged(model(pixels), right)

    known = chance(meant[held_out[JUDGE]])
    return Task(model=net, train_batches=batches, loss=loss, evaluate=evaluate, chance=known)
