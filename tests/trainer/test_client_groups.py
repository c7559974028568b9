"""Trainers that bring parameter groups keep them: PEFT's LoRA+ helper, and the calls of Axolotl and ms-swift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import Trainer

import emo_hf
from emo_hf import EmoNavi
from tests import tiny
from tests.trainer.kit import emo_of, lora, said

LR, DECAY = 1e-3, 0.1


def rates(optimizer: Any) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def assert_each_parameter_once(optimizer: Any, model: nn.Module) -> None:
    grouped = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(grouped) == sorted(map(id, trainable(model).values()))


class LoraPlus(Trainer):
    """Axolotl's call with `loraplus_lr_ratio`: class and arguments from the Trainer, groups from PEFT."""

    def create_optimizer(self, model: Any = None) -> Any:
        cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            self.model, cls, loraplus_lr_ratio=16, loraplus_lr_embedding=1e-6, loraplus_weight_decay=DECAY, **kwargs
        )
        return self.optimizer


class VisionTower(Trainer):
    """ms-swift's call with `vit_lr`: the Trainer's method called on the class, groups with a rate of their own."""

    def create_optimizer(self, model: Any = None) -> Any:
        decaying = set(Trainer.get_decay_parameter_names(None, self.model))
        groups = []
        for part, lr in (("query", 0.5), ("value", LR), ("classifier", LR)):
            for decay in (0.0, DECAY):
                of_part = {name: param for name, param in trainable(self.model).items() if part in name}
                params = [param for name, param in of_part.items() if (name in decaying) == bool(decay)]
                if params:
                    groups.append({"params": params, "weight_decay": decay, "lr": lr})
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = cls(groups, **kwargs)
        return self.optimizer


@pytest.mark.parametrize(
    ("trainer_class", "expected"),
    [
        (LoraPlus, {"lora_a+head": LR, "lora_b": 16 * LR, "head_no_decay": 16 * LR}),
        (VisionTower, {"lora_a+lora_b": 0.5, "lora_a+lora_b_2": LR, "head_no_decay": LR, "head": LR}),
    ],
)
def test_the_groups_of_the_trainer_win_are_named_by_role_and_train(
    trainer_class: type[Trainer], expected: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = lora()
    settings = {"learning_rate": LR, "weight_decay": DECAY, "max_steps": 3, "lr_scheduler_type": "constant"}
    args = tiny.arguments(tmp_path, **settings, optim_args="beta2=0.98")
    trainer = trainer_class(model, args, train_dataset=tiny.examples())
    trainer.train()
    optimizer = emo_of(trainer)
    assert type(optimizer) is EmoNavi
    assert rates(optimizer) == pytest.approx(expected)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    assert_each_parameter_once(optimizer, model)
    assert optimizer.emotion.observations == 3
    (line,) = (line for line in said(caplog) if "parameter groups" in line)
    assert all(name in line for name in expected)
    assert {f"emo/effective_lr/{name}" for name in expected} < tiny.train_lines(trainer)[-1].keys()


@pytest.fixture
def made(tmp_path: Path) -> tuple[nn.Module, type[EmoNavi], dict[str, Any]]:
    """A model, and what the Trainer gives a subclass to make its optimizer of."""
    model = lora()
    trainer = tiny.trainer(tmp_path, model=model, weight_decay=DECAY, optim_args="lora_b_lr_ratio=16")
    cls, kwargs = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    assert "params" not in kwargs
    assert issubclass(cls, EmoNavi)
    assert (cls.__name__, cls in emo_hf.FAMILY.values()) == ("EmoNavi", False)
    return model, cls, kwargs


def test_the_plain_groups_of_the_trainer_give_way_to_groups_by_role_without_what_they_leave_out(
    made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, cls, kwargs = made
    trainer = tiny.trainer(tmp_path, model=model, weight_decay=DECAY, optim_args="lora_b_lr_ratio=16")
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is EmoNavi
    assert rates(optimizer) == pytest.approx({"lora_a": LR, "lora_b": 16 * LR, "head": LR, "head_no_decay": LR})
    assert_each_parameter_once(optimizer, model)
    assert "parameter groups" not in caplog.text
    queries = [param for name, param in trainable(model).items() if "query" in name]
    plain = [{"params": queries, "weight_decay": DECAY}, {"params": [], "weight_decay": 0.0}]
    optimizer = cls(plain, **kwargs)
    assert rates(optimizer) == pytest.approx({"lora_a": LR, "lora_b": 16 * LR})
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_what_a_trainer_may_call_takes_what_the_class_takes_keeps_strange_parameters_and_names(
    made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, cls, kwargs = made
    params, extra = list(trainable(model).values()), nn.Parameter(torch.ones(2))
    assert rates(cls(params, **kwargs))["lora_b"] == pytest.approx(16 * LR)
    assert len(cls(list(trainable(model).items()), **kwargs).param_groups) == 1
    (group,) = cls([{"params": [*params, extra]}], **kwargs).param_groups
    assert group["params"][-1] is extra
    groups = [{"params": params[:1], "name": "lora_b", "lr": 0.1}, {"params": params[1:2]}, {"params": params[2:3]}]
    assert list(rates(cls(groups, **kwargs))) == ["lora_b", "lora_b_2", "lora_a"]
    assert "The options of lora_b have no effect." in caplog.text
