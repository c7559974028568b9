"""Optimizers of others that the tests attach an emotion to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from emo_hf import Attachment, EmotionView, attach
from emo_hf.laws import make_law
from tests.emo_cases import (
    give_gradients,
    held,
    losses,
    parameters,
)

SHAPES = [(64, 64), (64, 8), (8, 64)]  # matrices, for Muon; the first large enough to be kept in 8 bits
STEPS = 24
LOW_RANK = {"rank": 2, "update_proj_gap": 10, "scale": 1.0, "proj_type": "std"}
Groups = list[dict[str, Any]]


def of(module: str, name: str, own: dict[str, Any] | None = None, **options: Any) -> Callable[[Groups], Optimizer]:
    """Makes an optimizer of a package that may be missing; `own` are options of its groups."""

    def make(groups: Groups) -> Optimizer:
        cls = getattr(pytest.importorskip(module), name, None) or pytest.skip(f"this {module} has no {name}")
        return cls([{**group, **(own or {})} for group in groups], **options)

    return make


def adamw_of_rate_tensors(groups: Groups) -> Optimizer:
    # A tensor for the rate is what capturable=True needs on a GPU, where a graph reads it anew.
    return torch.optim.AdamW([{**group, "lr": torch.tensor(group["lr"])} for group in groups], foreach=False)


MAKERS: dict[str, Callable[[Groups], Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw fused": of("torch.optim", "AdamW", fused=True),
    "adamw of rate tensors": adamw_of_rate_tensors,
    "sgd": of("torch.optim", "SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": of("torch.optim", "RMSprop", momentum=0.5),
    "adafactor": torch.optim.Adafactor,
    "adafactor of transformers": of(
        "transformers.optimization", "Adafactor", scale_parameter=False, relative_step=False
    ),
    "muon": of("torch.optim", "Muon"),
    "bitsandbytes": of("bitsandbytes.optim", "AdamW8bit", min_8bit_size=256),
    "torchao": of("torchao.optim", "AdamW8bit"),
    "schedule-free": of("schedulefree", "AdamWScheduleFree", warmup_steps=5),
    "galore": of("galore_torch", "GaLoreAdamW", LOW_RANK),
    "apollo": of("apollo_torch", "APOLLOAdamW", {**LOW_RANK, "proj": "random", "scale_type": "channel"}),
}


def build(name: str = "adamw") -> Optimizer:
    """An optimizer over two groups with rates of their own, the second with a name."""
    params = parameters(SHAPES)
    torch.manual_seed(0)  # some project at random
    made = MAKERS[name]([{"params": params[:2], "lr": 0.01}, {"params": params[2:], "lr": 0.002, "name": "rest"}])
    getattr(made, "train", lambda: None)()
    return made


def attached(name: str = "adamw", law: str = "v3.1", steps: int = 0) -> tuple[Optimizer, Attachment]:
    optimizer = build(name)
    handle = attach(optimizer, law)
    run(optimizer, handle, range(steps))
    return optimizer, handle


def params_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def weights(optimizer: Optimizer) -> list[torch.Tensor]:
    return held(params_of(optimizer))


def rates(optimizer: Optimizer) -> list[Any]:
    return [group["lr"] for group in optimizer.param_groups]


def run(optimizer: Optimizer, handle: Attachment | None, steps: range, shown: Sequence[float] = losses(100)) -> None:
    for t in steps:
        give_gradients(params_of(optimizer), t)
        if handle is not None:
            handle.observe(shown[t])
        optimizer.step()


def scaled_by_hand(optimizer: Optimizer, shown: Sequence[float], law: str = "v3.1") -> EmotionView:
    """What a user without `attach` would write, and what the law then feels."""
    made = make_law(law, "v3.1", {})
    for t, loss in enumerate(shown):
        before, factor = rates(optimizer), made.feel(loss).coefficient
        give_gradients(params_of(optimizer), t)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        optimizer.step()
        for group, lr in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr
    return made.view()


def felt(shown: Sequence[float]) -> EmotionView:
    """The emotion after these losses."""
    law = make_law("v3.1", "v3.1", {})
    for loss in shown:
        law.feel(loss)
    return law.view()


def regression() -> tuple[nn.Linear, Callable[[], torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    inputs = torch.randn(16, 4)
    return model, lambda: (model(inputs) - inputs[:, :2] - 1.0).square().mean()


def traces(optimizer: Optimizer) -> dict[str, Any]:
    """Everything of an optimizer that an emotion could have left something in."""
    own = {key: value for key, value in vars(optimizer).items() if key not in ("state", "param_groups")}
    for noted_by_torch_in_a_step in ("_warned_capturable_if_run_uncaptured", "_opt_called"):
        own.pop(noted_by_torch_in_a_step, None)
    return copy.copy(own) | {
        "hooks": {key: len(value) for key, value in own.items() if key.endswith("hooks")},
        "groups": [sorted(group) for group in optimizer.param_groups],
        "methods": [optimizer.step, optimizer.zero_grad],
    }
