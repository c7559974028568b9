"""diffusers: a training loop as its examples have it, with a real UNet, its schedulers and its average of weights."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers")

from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, TensorDataset

import emo_hf
from emo_hf.integrations.accelerate import unwrap

ACCUMULATED, EPOCHS = 2, 3


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["emonavi", "adamw"])
def test_a_loop_as_in_its_examples_feels_the_loss_of_each_step(name: str) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATED, cpu=True)
    model, noise_scheduler = unet(), DDPMScheduler(num_train_timesteps=50)
    if name == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        emo_hf.attach(optimizer)
    else:
        optimizer = emo_hf.create_optimizer(name, model, lr=1e-3)
    lr_scheduler = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=2, num_training_steps=12)
    loader = DataLoader(TensorDataset(torch.rand(16, 1, 8, 8)), batch_size=2)
    model, optimizer, loader, lr_scheduler = accelerator.prepare(model, optimizer, loader, lr_scheduler)
    average = EMAModel(model.parameters(), decay=0.9)
    emo = unwrap(optimizer)
    felt, micro_losses, feel = [], [], emo._engine.law.feel
    emo._engine.law.feel = lambda loss: (felt.append(loss), feel(loss))[1]
    for _ in range(EPOCHS):
        for (clean,) in loader:
            with accelerator.accumulate(model):
                noise, steps = torch.randn_like(clean), torch.randint(0, 50, (clean.shape[0],))
                noisy = noise_scheduler.add_noise(clean, noise, steps)
                loss = torch.nn.functional.mse_loss(model(noisy, steps).sample, noise)
                micro_losses.append(loss.item())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                average.step(model.parameters())
    pairs = zip(micro_losses[::ACCUMULATED], micro_losses[1::ACCUMULATED], strict=True)
    assert felt == [pytest.approx(sum(pair) / ACCUMULATED) for pair in pairs]
    assert len(felt) == EPOCHS * 4
