"""Flow matching: a small network learns the velocity with which noise flows to the points of a checkerboard."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from study_data import beside, generator
from torch import nn

from emo_hf.study.task import HALVES, Task

PASS = 200  # batches that count as one
HELD_OUT = 2000  # points of each half
OCTAVES = 8  # sines and cosines of the time that the network sees

Batch = tuple[torch.Tensor, ...]


class Velocity(nn.Module):
    """v(x, t), from a perceptron."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 2 * OCTAVES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width),
            nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        angles = 0.5 * math.pi * 2 ** torch.arange(OCTAVES, device=points.device) * time
        return self.layers(torch.cat([points, angles.sin(), angles.cos()], 1))  # type: ignore[no-any-return]


def checkerboard(seed: int, batch: int = 128) -> Task:
    """x_t = (1 − t)·noise + t·data; the loss is the mean of (v(x_t, t) − (data − noise))² (arXiv 2210.02747).

    Args:
        seed: of the weights, which torch has been seeded with.
        batch: points a step.
    """

    def batches(order_seed: int) -> Iterator[Batch]:
        drawn = generator(order_seed)
        for _ in range(PASS):
            yield _drawn(batch, drawn)

    def loss(model: nn.Module, parts: Batch) -> torch.Tensor:
        points, noise, time = parts
        return (model((1 - time) * noise + time * points, time) - (points - noise)).square().mean()

    unseen = {half: _drawn(HELD_OUT, generator(10**6 + number)) for number, half in enumerate(HALVES, 1)}

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        return {"loss": loss(model, tuple(beside(model, *unseen[half]))).item()}

    return Task(model=Velocity(), train_batches=batches, loss=loss, evaluate=evaluate)


def _drawn(count: int, drawn: torch.Generator) -> Batch:
    """Points on the black fields of a board of 4 × 4, from −2 to 2, with noise and times between 0 and 1."""
    column = torch.randint(4, (count,), generator=drawn)
    row = 2 * torch.randint(2, (count,), generator=drawn) + column % 2
    points = torch.stack([column, row], 1) + torch.rand(count, 2, generator=drawn) - 2
    return points, torch.randn(count, 2, generator=drawn), torch.rand(count, 1, generator=drawn)
