"""A task in Python that takes milliseconds: a small network learns a linear map with noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from emo_hf.study.task import Task


def make(seed: int, noise: float = 0.1, width: int = 4) -> Task:
    """The data are always the same; the order of the batches and the weights are those of the seed."""
    data = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, generator=data)
    y = x @ torch.randn(3, 1, generator=data) + noise * torch.randn(96, 1, generator=data)
    parts = {"tune": slice(64, 80), "judge": slice(80, 96)}

    def batches(order_seed: int) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(order_seed))
        return ({"x": x[part], "y": y[part]} for part in order.split(16))

    def loss(net: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.mse_loss(net(batch["x"]), batch["y"])

    def evaluate(net: torch.nn.Module, half: str) -> dict[str, float]:
        assert not net.training
        assert not torch.is_grad_enabled()
        return {"loss": loss(net, {"x": x[parts[half]], "y": y[parts[half]]}).item(), "examples": 16.0}

    model = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    return Task(model=model, train_batches=batches, loss=loss, evaluate=evaluate)


def no_loss(seed: int) -> Task:
    """Its evaluation forgets the loss."""
    return dataclasses.replace(make(seed), evaluate=lambda model, half: {})


def no_task(seed: int) -> int:
    """Not a task at all."""
    return seed
