"""Trainers that bring parameter groups keep them: PEFT's LoRA+ helper, and the calls of Axolotl and ms-swift."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import Trainer

import emo_hf
from emo_hf import EmoNavi
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

LR, DECAY = 1e-3, 0.1


def adapted(**options: Any) -> nn.Module:
    settings = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], **options}
    return get_peft_model(tiny.classifier(), LoraConfig(**settings))


def rates(optimizer: Any) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def assert_each_parameter_once(optimizer: Any, model: nn.Module) -> None:
    grouped = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(grouped) == sorted(id(param) for param in model.parameters() if param.requires_grad)


class LoraPlus(Trainer):
    """Axolotl's call with `loraplus_lr_ratio`: class and arguments from the Trainer, groups from PEFT."""

    def create_optimizer(self, model: Any = None) -> Any:
        cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            self.model, cls, loraplus_lr_ratio=16, loraplus_lr_embedding=1e-6, loraplus_weight_decay=DECAY, **kwargs
        )
        return self.optimizer


class LearningRateGroups(Trainer):
    """Axolotl's call with `lr_groups`: groups first, with a rate each, then `params` of the arguments if there are."""

    def create_optimizer(self, model: Any = None) -> Any:
        cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        named = [(name, param) for name, param in self.model.named_parameters() if param.requires_grad]
        parts: list[tuple[Callable[[str], bool], float]] = [
            (lambda name: "query" in name, kwargs["lr"]),
            (lambda name: "modules_to_save" in name, kwargs["lr"]),
            (lambda name: "value" in name, 0.5),
        ]
        groups = [
            {"params": [param for name, param in named if belongs(name)], "weight_decay": DECAY, "lr": lr}
            for belongs, lr in parts
        ]
        if "params" in kwargs:
            groups = kwargs.pop("params")
        self.optimizer = cls(groups, **kwargs)
        return self.optimizer


class VisionTower(Trainer):
    """ms-swift's call with `vit_lr`: the Trainer's method called on the class, two groups for each part."""

    def create_optimizer(self, model: Any = None) -> Any:
        named = [(name, param) for name, param in self.model.named_parameters() if param.requires_grad]
        decaying = set(Trainer.get_decay_parameter_names(None, self.model))
        groups = []
        for part, lr in (("query", 0.5), ("value", LR), ("classifier", LR)):
            for decays in (False, True):
                params = [param for name, param in named if part in name and (name in decaying) == decays]
                if params:
                    groups.append({"params": params, "weight_decay": DECAY if decays else 0.0, "lr": lr})
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = cls(groups, **kwargs)
        return self.optimizer


@pytest.mark.parametrize(
    ("trainer_class", "expected"),
    [
        (LoraPlus, {"lora_a+head": LR, "lora_b": 16 * LR, "head_no_decay": 16 * LR}),
        (LearningRateGroups, {"lora_a+lora_b": LR, "head": LR, "lora_a+lora_b_2": 0.5}),
        (VisionTower, {"lora_a+lora_b": 0.5, "lora_a+lora_b_2": LR, "head_no_decay": LR, "head": LR}),
    ],
)
def test_the_groups_of_the_trainer_win_are_named_by_role_and_train(
    trainer_class: type[Trainer], expected: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted()
    args = tiny.arguments(
        tmp_path, learning_rate=LR, weight_decay=DECAY, max_steps=3, lr_scheduler_type="constant",
        optim_args="beta2=0.98",
    )  # fmt: skip
    trainer = trainer_class(model, args, train_dataset=tiny.examples())
    with caplog.at_level(logging.WARNING, logger="emo_hf"):
        trainer.train()
    optimizer = unwrap(trainer.optimizer)
    assert type(optimizer) is EmoNavi
    assert rates(optimizer) == pytest.approx(expected)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    assert_each_parameter_once(optimizer, model)
    assert optimizer.emotion.observations == 3
    said = [record.getMessage() for record in caplog.records if "parameter groups" in record.getMessage()]
    assert len(said) == 1
    assert all(name in said[0] for name in expected)
    last = tiny.train_lines(trainer)[-1]
    assert {f"emo/effective_lr/{name}" for name in expected} < last.keys()


def test_options_for_roles_that_the_groups_of_the_trainer_leave_without_effect_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = tiny.arguments(tmp_path, optim_args="lora_b_lr_ratio=4,head_lr=0.5")
    LoraPlus(adapted(), args).create_optimizer()
    assert "The options of lora_b, head have no effect." in caplog.text


def test_the_plain_groups_of_the_trainer_give_way_to_groups_by_role(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny.trainer(tmp_path, model=adapted(), weight_decay=DECAY, optim_args="lora_b_lr_ratio=16")
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is EmoNavi
    assert rates(optimizer) == pytest.approx({"lora_a": LR, "lora_b": 16 * LR, "head": LR, "head_no_decay": LR})
    assert_each_parameter_once(optimizer, trainer.model)
    assert "parameter groups" not in caplog.text


def test_parameters_that_the_plain_groups_of_a_trainer_leave_out_stay_out(tmp_path: Path) -> None:
    class OnlyQueries(Trainer):
        def create_optimizer(self, model: Any = None) -> Any:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            params = [
                param for name, param in self.model.named_parameters() if "query" in name and param.requires_grad
            ]
            self.optimizer = cls(
                [{"params": params, "weight_decay": DECAY}, {"params": [], "weight_decay": 0.0}], **kwargs
            )
            return self.optimizer

    args = tiny.arguments(tmp_path, weight_decay=DECAY, optim_args="lora_b_lr_ratio=16")
    optimizer = OnlyQueries(adapted(target_modules=["query", "value"]), args).create_optimizer()
    assert rates(optimizer) == pytest.approx({"lora_a": LR, "lora_b": 16 * LR})
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_what_a_trainer_may_call_takes_parameters_and_pairs_as_the_class_does(tmp_path: Path) -> None:
    model = adapted()
    trainer = tiny.trainer(tmp_path, model=model, optim_args="lora_b_lr_ratio=16")
    cls, kwargs = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    assert "params" not in kwargs
    assert issubclass(cls, EmoNavi)
    assert cls.__name__ == "EmoNavi"
    trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    assert rates(cls([param for _, param in trainable], **kwargs))["lora_b"] == pytest.approx(16 * LR)
    assert len(cls(trainable, **kwargs).param_groups) == 1
    assert cls not in emo_hf.FAMILY.values()


def test_plain_groups_with_a_parameter_that_the_model_has_not_keep_it(tmp_path: Path) -> None:
    model, extra = adapted(), nn.Parameter(torch.ones(2))
    trainer = tiny.trainer(tmp_path, model=model)
    cls, kwargs = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    params = [param for param in model.parameters() if param.requires_grad]
    (group,) = cls([{"params": [*params, extra]}], **kwargs).param_groups
    assert group["params"][-1] is extra


def test_groups_with_names_keep_them_and_others_get_names_of_their_own(tmp_path: Path) -> None:
    model = adapted()
    trainer = tiny.trainer(tmp_path, model=model)
    cls, kwargs = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [{"params": params[:1], "name": "lora_b", "lr": 0.1}, {"params": params[1:2]}, {"params": params[2:3]}]
    assert list(rates(cls(groups, **kwargs))) == ["lora_b", "lora_b_2", "lora_a"]


def test_pefts_lora_plus_helper_makes_an_emo_optimizer_of_its_class() -> None:
    model = adapted()
    optimizer = create_loraplus_optimizer(
        model, EmoNavi, lr=LR, loraplus_lr_ratio=16, weight_decay=DECAY, use_shadow=True, emo_law="robust"
    )
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([LR, 16 * LR, 16 * LR])
    assert_each_parameter_once(optimizer, model)
    before = [param.detach().clone() for param in model.parameters() if param.requires_grad]
    loss = model(input_ids=torch.arange(8).view(2, 4), labels=torch.tensor([0, 1])).loss
    optimizer.observe(loss)
    loss.backward()
    optimizer.step()
    after = [param for param in model.parameters() if param.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert optimizer.emotion.short == pytest.approx(loss.item())
