"""Lightning: one callback, and an optimizer with an emotion.

python scripts/examples/in_lightning.py     (needs `pip install lightning`)

With `EmoLightningCallback(emotion="settle")` it would be any other optimizer that feels the loss.
"""

import logging

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import emo_hf
from emo_hf.integrations.lightning import EmoLightningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Regression(lightning.LightningModule):
    """Learns the sine of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 128), torch.nn.GELU(), torch.nn.Linear(128, 1))
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return emo_hf.EmoNavi(self.parameters(), lr=3e-3)


lightning.seed_everything(0, verbose=False)
inputs = torch.randn(2048, 8)
data = TensorDataset(inputs, torch.sin(inputs.sum(1, keepdim=True)))
module = Regression()
trainer = lightning.Trainer(
    max_epochs=8,
    callbacks=[EmoLightningCallback()],
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    enable_progress_bar=False,
    accelerator="cpu",
)
trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))

emotion = module.optimizers().emotion
first, last = (sum(part) / len(part) for part in (module.losses[:64], module.losses[-64:]))
print(f"Trained {sum(p.numel() for p in module.parameters()):,} parameters: loss {first:.3f} → {last:.3f}")
print(
    f"The emotion felt {emotion.observations} losses: scalar {emotion.scalar:+.3f}, factor {emotion.coefficient:.2f}"
)
