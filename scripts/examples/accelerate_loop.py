"""A loop of your own with accelerate: `accelerator.backward` is where the loss is felt, so nothing else is needed.

python scripts/examples/accelerate_loop.py
accelerate launch scripts/examples/accelerate_loop.py

The emotion of a step is that of all its micro-batches, here two, and of all ranks.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

import emo_hf

set_seed(0)
inputs = torch.randn(2048, 8)
targets = torch.sin(inputs.sum(1, keepdim=True))
loader = DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)
model = torch.nn.Sequential(
    torch.nn.Linear(8, 128), torch.nn.GELU(), torch.nn.Linear(128, 128), torch.nn.GELU(), torch.nn.Linear(128, 1)
)

accelerator = Accelerator(gradient_accumulation_steps=2)
optimizer = emo_hf.EmoNavi(model.parameters(), lr=1e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
emo = optimizer.optimizer  # what accelerate wraps

losses = []
for epoch in range(15):
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    rates = ", ".join(f"{rate:.2g}" for rate in emo.effective_lr.values())
    accelerator.print(f"epoch {epoch + 1}: scalar {emo.emotion.scalar:+.3f}, learning rate {rates}")

first, last = (sum(part) / len(part) for part in (losses[:64], losses[-64:]))
accelerator.print(f"Trained {sum(p.numel() for p in model.parameters()):,} parameters: loss {first:.3f} → {last:.3f}")
accelerator.print(f"The emotion felt {emo.emotion.observations} losses; does it say stop? {emo.emotion.should_stop}")
