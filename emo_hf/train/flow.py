"""Flow matching: a network that says with which velocity noise flows to data.

With data x₁, noise x₀ ~ N(0, I) and a time t between 0 and 1, a point on the straight way from noise to data is
x_t = (1 − t) x₀ + t x₁, and the velocity there x₁ − x₀. The loss is the mean of (v(x_t, t) − (x₁ − x₀))². A sample
begins at noise and follows v from t = 0 to 1. After Lipman et al. 2023 (arXiv:2210.02747) and Liu et al. 2023
(arXiv:2209.03003).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class FlowConfig(PreTrainedConfig):
    """A velocity network's sizes.

    Attributes:
        coordinates: of a data point.
        hidden_size: width of the layers.
        num_hidden_layers: how many there are between the first and the last.
        frequencies: sines and cosines of the time that the network sees.
        sampling_steps: Euler steps from noise to a sample.
    """

    model_type = "emo_hf_flow"
    coordinates: int = 2
    hidden_size: int = 128
    num_hidden_layers: int = 2
    frequencies: int = 8
    sampling_steps: int = 25


class FlowModel(PreTrainedModel):
    """A small perceptron as the velocity; `FlowModel.from_pretrained(folder).sample(1000)` once it is trained."""

    config_class = FlowConfig
    main_input_name = "points"

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        width, inner = config.hidden_size, config.num_hidden_layers
        layers: list[nn.Module] = [nn.Linear(config.coordinates + 2 * config.frequencies, width), nn.SiLU()]
        for _ in range(inner):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.network = nn.Sequential(*layers, nn.Linear(width, config.coordinates))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            nn.init.zeros_(module.bias)

    def velocity(self, points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """v(x, t).

        Args:
            points: x, of shape (batch, coordinates).
            time: t, of shape (batch, 1).
        """
        octaves = torch.arange(self.config.frequencies, device=points.device, dtype=points.dtype)
        angles = 0.5 * math.pi * 2**octaves * time
        output: torch.Tensor = self.network(torch.cat([points, angles.sin(), angles.cos()], dim=-1))
        return output

    def forward(
        self, points: torch.Tensor, noise: torch.Tensor | None = None, time: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch of data points; with `noise`, as in evaluation, also the samples that it flows to.

        Args:
            points: x₁, of shape (batch, coordinates).
            noise: x₀, of the same shape; drawn if None.
            time: t, of shape (batch,); drawn if None.
        """
        points = points.to(self.dtype)
        start = torch.randn_like(points) if noise is None else noise.to(points.dtype)
        t = torch.rand_like(points[:, :1]) if time is None else time.to(points.dtype)[:, None]
        velocity = self.velocity((1 - t) * start + t * points, t)
        output = {"loss": (velocity - (points - start)).square().mean()}
        return output if noise is None else output | {"samples": self.flow(start)}

    @torch.no_grad()
    def flow(self, noise: torch.Tensor) -> torch.Tensor:
        """The samples to which noise of shape (count, coordinates) flows."""
        steps = self.config.sampling_steps
        points = noise
        for step in range(steps):
            time = torch.full_like(points[:, :1], step / steps)
            points = points + self.velocity(points, time) / steps
        return points

    def sample(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """New points like those that were learned, of shape (count, coordinates)."""
        shape = (count, self.config.coordinates)
        return self.flow(torch.randn(shape, generator=generator, dtype=self.dtype).to(self.device))


def energy_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """√(2 E|a − b| − E|a − a'| − E|b − b'|): 0 for the same distribution (Székely and Rizzo 2013).

    Args:
        first, second: points, of shape (count, coordinates).
    """

    def mean(a: NDArray[Any], b: NDArray[Any]) -> float:
        return float(np.mean([np.linalg.norm(b - point, axis=1).mean() for point in a]))

    return math.sqrt(max(2 * mean(first, second) - mean(first, first) - mean(second, second), 0.0))


def two_moons(count: int, seed: int) -> NDArray[np.float64]:
    """Points on two half circles that reach into each other, with a little noise, scaled to a spread of about 1."""
    numbers = np.random.default_rng(seed)
    angle = numbers.uniform(0, np.pi, count)
    upper = np.arange(count) % 2 == 0
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    points = np.stack([x - 0.5, y - 0.25], axis=1) + numbers.normal(0, 0.06, (count, 2))
    return points * [1.15, 2.0]


def checkerboard(count: int, seed: int) -> NDArray[np.float64]:
    """Points on the black fields of a board of 4 × 4, from −2 to 2: eight pieces without a way between them."""
    numbers = np.random.default_rng(seed)
    column = numbers.integers(0, 4, count)
    row = 2 * numbers.integers(0, 2, count) + column % 2
    return np.stack([column, row], axis=1) + numbers.uniform(0, 1, (count, 2)) - 2
