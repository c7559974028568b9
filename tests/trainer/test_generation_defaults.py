"""A generation's own defaults in the Trainer; schedulers, groups and lr 0 where the rate is made from the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

import emo_hf
from tests import tiny
from tests.trainer.kit import emo_of, lora, said, trained

SCALED = [name for name, cls in emo_hf.FAMILY.items() if cls.version_named(None).lr_is_a_scale]
TRAINER_LR = 5e-5
FROM_36, USUAL, EARLY_SIGN = (0.9, 0.995), (0.9, 0.999), (0.9, 0.99)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """For tests that make an optimizer and take no step."""
    return tiny.classifier()


def made(folder: Path, model: nn.Module, **changes: Any) -> tuple[float, tuple[float, float]]:
    """The learning rate and the betas that the Trainer's optimizer begins with."""
    group = tiny.trainer(folder, model=model, **changes).create_optimizer().param_groups[0]
    return group["lr"], group["betas"]


@pytest.mark.parametrize("name", SCALED)
def test_where_the_rate_is_a_scale_the_trainers_own_is_not_taken_for_one_and_one_line_says_so(
    name: str, tmp_path: Path, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    assert made(tmp_path, model, optim=name, learning_rate=TRAINER_LR) == (1.0, FROM_36)
    taken = "lr 1 (a scale, of which the law makes the learning rate) and betas (0.9, 0.995)"
    assert said(caplog) == [f"{name} v3.9: {taken}, since the Trainer's defaults were left."]
    for lr in (0.0, 1e-3, 2.0):
        assert made(tmp_path, model, optim=name, learning_rate=lr)[0] == lr, "what was given is kept"


@pytest.mark.parametrize(
    ("name", "version", "betas"),
    [
        ("emonavi", "v3.1", USUAL), ("emonavi", "v3.6", FROM_36), ("emofact", "v3.0", USUAL),
        ("emolynx", "v3.0", EARLY_SIGN), ("emoneco", "v3.0", EARLY_SIGN), ("emosens", "v3.9", FROM_36),
    ],
)  # fmt: skip
def test_betas_are_the_generations_where_the_trainers_were_left(
    name: str, version: str, betas: tuple[float, float], tmp_path: Path, model: nn.Module,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    changes = {"optim": name, "optim_args": f"version={version}", "learning_rate": 1e-3}
    assert made(tmp_path, model, **changes) == (1e-3, betas)
    assert len(said(caplog)) == (0 if betas == USUAL else 1), "only what differs is worth a line"
    assert made(tmp_path, model, **changes, adam_beta2=0.97) == (1e-3, (0.9, 0.97))
    caplog.clear()
    changes["optim_args"] += ",beta2=0.999"
    assert made(tmp_path, model, **changes) == (1e-3, USUAL)
    assert said(caplog) == []


CONSTANT = {"learning_rate": TRAINER_LR, "lr_scheduler_type": "constant"}


def rates_of(trainer: Trainer, key: str = "emo/effective_lr") -> list[float]:
    """What is logged of a rate, divided by the factor that the law gave in the same step."""
    return [line[key] / line["emo/coefficient"] for line in tiny.train_lines(trainer)]


class Heads(TrainerCallback):
    """Notes the head's weights before and after each step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.seen.append(model.classifier.weight.detach().clone())

    on_step_end = on_train_begin


@pytest.mark.parametrize("name", SCALED)
def test_warm_up_and_decay_scale_a_rate_that_is_made_from_the_loss_and_a_rate_of_0_moves_nothing(
    name: str, tmp_path: Path
) -> None:
    heads, schedule = Heads(), {"max_steps": 4, "warmup_steps": 2, "lr_scheduler_type": "linear"}
    changes = {**schedule, "learning_rate": TRAINER_LR, "weight_decay": 0.1, "callbacks": [heads]}
    trainer = trained(tmp_path, optim=name, **changes)
    lines = tiny.train_lines(trainer)
    logged = [line["learning_rate"] for line in lines]
    assert logged == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert rates_of(trainer) == pytest.approx(logged)
    assert all(1e-5 < line["emo/coefficient"] <= 3e-3 for line in lines), "the rate is made from the loss"
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0, "the scheduler has the last word over the group's"
    begin, after_0, after_1, *_ = heads.seen
    assert torch.equal(begin, after_0)
    assert not torch.equal(after_0, after_1)


def test_ratios_of_groups_scale_a_rate_that_is_made_from_the_loss(tmp_path: Path) -> None:
    args = "lora_b_lr_ratio=16,head_lr=0.25"
    trainer = trained(tmp_path, model=lora(), optim="emocats", optim_args=args, max_steps=3, **CONSTANT)
    for name, rate in (("lora_a", 1.0), ("lora_b", 16.0), ("head", 0.25)):
        assert rates_of(trainer, f"emo/effective_lr/{name}") == pytest.approx([rate] * 3)


def b_of(model: nn.Module) -> list[nn.Parameter]:
    return [param for name, param in model.named_parameters() if "lora_B" in name]


class SizeOfB(TrainerCallback):
    """Notes the L1 norm of LoRA's B after each step."""

    def __init__(self) -> None:
        self.sizes: list[float] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.sizes.append(sum(param.detach().abs().sum().item() for param in b_of(model)))


def test_emovoid_keeps_the_size_of_a_and_lets_b_grow_from_nothing(tmp_path: Path) -> None:
    watch, model = SizeOfB(), lora()
    before = sum(param.abs().sum() for name, param in model.named_parameters() if "lora_A" in name).item()
    trainer = trained(tmp_path, model=model, optim="emovoid", max_steps=6, callbacks=[watch], **CONSTANT)
    assert [group["name"] for group in trainer.optimizer.param_groups][:2] == ["lora_a", "lora_b"]
    assert emo_of(trainer)._rule.memory()["norm"] == pytest.approx(before, rel=1e-6)
    assert watch.sizes[0] > 0
    assert watch.sizes[-1] > 1.5 * watch.sizes[0]
