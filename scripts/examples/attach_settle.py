"""Keep AdamW at a constant rate, give it the law `settle`, and do not say how long to train.

python scripts/examples/attach_settle.py

The law keeps an average of the weights, which is what is evaluated and kept, and says that training may end when
evaluations are no better three times in a row. A perceptron learns on which of two rings a point lies. One label in
ten is wrong, so that no loss can be much lower than 0.33. In the Trainer the same is
`callbacks=[emo_hf.EmoCallback(emotion="settle", self_stop="stop")]`.
"""

import math

import torch
from torch.nn.functional import cross_entropy

import emo_hf
from emo_hf.laws.words import text_of


def rings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points, of shape (count, 2), and the ring that each is said to lie on, of shape (count,)."""
    inner = torch.arange(count) % 2
    angle, radius = 2 * math.pi * torch.rand(count), 1.0 - 0.5 * inner + 0.1 * torch.randn(count)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return points, torch.where(torch.rand(count) < 0.1, 1 - inner, inner)


torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
handle = emo_hf.attach(optimizer, law="settle")  # added

losses: list[float] = []
held_out, held_out_ring = rings(2000)
while not handle.emotion.should_stop and len(losses) < 5000:
    points, ring = rings(64)
    optimizer.zero_grad()
    loss = cross_entropy(model(points), ring)
    handle.observe(loss)  # added; before backward. Not needed where accelerate's backward is used
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if len(losses) % 100 == 0:
        with torch.no_grad(), handle.average_shown():
            evaluation = cross_entropy(model(held_out), held_out_ring).item()
        handle.hear_evaluation(evaluation)
handle.finish_average()  # the parameters hold it from now on

for note in handle.decisions:
    print(f"step {note.step}: {text_of(note)}")
first, last = (sum(part) / len(part) for part in (losses[:50], losses[-50:]))
print(f"Trained {sum(p.numel() for p in model.parameters()):,} parameters: loss {first:.3f} → {last:.3f}")
print(f"The emotion felt {handle.emotion.observations} losses; does it say stop? {handle.emotion.should_stop}")
