"""Flow matching in plain PyTorch: noise learns to flow to two moons, with EmoCats, whose rate comes from the losses.

python scripts/examples/flow_matching.py

With data x₁, noise x₀ and a time t, the network sees x_t = (1 − t)·x₀ + t·x₁ and learns the velocity x₁ − x₀. Such a
loss never comes near zero, and says little by itself: the distance of samples to data says how good they are.
"""

import math

import torch

import emo_hf


def two_moons(count: int) -> torch.Tensor:
    """Points on two half circles that reach into each other."""
    angle, upper = math.pi * torch.rand(count), torch.arange(count) % 2 == 0
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return torch.stack([x, 2 * y], 1) + 0.06 * torch.randn(count, 2)


def sample(count: int, steps: int = 20) -> torch.Tensor:
    """Follow the velocity from noise to data."""
    points = torch.randn(count, 2)
    for step in range(steps):
        points += velocity(torch.cat([points, torch.full((count, 1), step / steps)], 1)) / steps
    return points


def distance(samples: torch.Tensor) -> float:
    """How far samples are from the nearest data point, on average."""
    return torch.cdist(samples, two_moons(1000)).min(1).values.mean().item()


torch.manual_seed(0)
velocity = torch.nn.Sequential(
    torch.nn.Linear(3, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128), torch.nn.SiLU(), torch.nn.Linear(128, 2)
)
optimizer = emo_hf.EmoCats(velocity.parameters(), lr=3.0)  # v3.9 makes the rate itself: this is a scale
before = distance(sample(1000).detach())
losses: list[float] = []
for _ in range(1000):
    x1, t = two_moons(256), torch.rand(256, 1)
    x0 = torch.randn_like(x1)
    optimizer.zero_grad()
    loss = (velocity(torch.cat([(1 - t) * x0 + t * x1, t], 1)) - (x1 - x0)).square().mean()
    optimizer.observe(loss)  # before backward
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

first, last = (sum(part) / len(part) for part in (losses[:50], losses[-50:]))
print(f"Trained {sum(p.numel() for p in velocity.parameters()):,} parameters: loss {first:.3f} → {last:.3f}")
print(f"From a sample to the nearest data point: {before:.3f} → {distance(sample(1000).detach()):.3f}")
print(f"The emotion felt {optimizer.emotion.observations} losses; learning rate now {optimizer.effective_lr}")
