"""A task for LoRA on which the loss falls far, so that a law has something to do."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor, nn

from emo_hf.study.task import Task
from emo_hf.study.tasks import images

PRETRAINING = 400  # steps


class Turn(nn.Module):
    """A quarter of a turn."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.rot90(dims=(-2, -1))


def turned_digits(seed: int, rank: int = 8) -> Task:
    """A perceptron that has learnt upright digits reads turned ones, with LoRA.

    Args:
        seed: of the adapter, which torch has been seeded with.
        rank: of the adapter.
    """
    from peft import LoraConfig, get_peft_model

    task = images.digits(seed)
    task.model.load_state_dict(_upright())
    whole = nn.Sequential(Turn(), task.model)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["1.1", "1.3"])
    adapted: nn.Module = get_peft_model(whole, config)  # type: ignore[arg-type]
    return Task(model=adapted, train_batches=task.train_batches, loss=task.loss, evaluate=task.evaluate)


@functools.cache
def _upright() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = images.digits(0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    batches = itertools.chain.from_iterable(task.train_batches(again) for again in itertools.count())
    for batch in itertools.islice(batches, PRETRAINING):
        optimizer.zero_grad()
        task.loss(task.model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return task.model.state_dict()
