"""A generation's own defaults in the Trainer; schedulers, groups and lr 0 where the rate is made from the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

SCALED = [name for name, cls in emo_hf.FAMILY.items() if cls.version_named(None).lr_is_a_scale]
TRAINER_LR = 5e-5


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """For tests that make an optimizer and take no step."""
    return tiny.classifier()


def lora() -> torch.nn.Module:
    return get_peft_model(tiny.classifier(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))


def made(folder: Path, model: Any, **changes: Any) -> tuple[float, tuple[float, float]]:
    """The learning rate and the betas that the Trainer's optimizer begins with."""
    group = tiny.trainer(folder, model=model, **changes).create_optimizer().param_groups[0]
    return group["lr"], group["betas"]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "Trainer's defaults were left" in record.message]


@pytest.mark.parametrize("name", SCALED)
def test_where_the_rate_is_a_scale_the_trainers_own_is_not_taken_for_one_and_one_line_says_so(
    name: str, tmp_path: Path, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert made(tmp_path, model, optim=name, learning_rate=TRAINER_LR) == (1.0, (0.9, 0.995))
    (line,) = said(caplog)
    taken = "lr 1 (a scale, of which the law makes the learning rate) and betas (0.9, 0.995)"
    assert line == f"{name} v3.9: {taken}, since the Trainer's defaults were left."


@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.1, 1.0, 2.0])
def test_a_scale_that_was_given_is_kept(lr: float, tmp_path: Path, model: Any) -> None:
    assert made(tmp_path, model, optim="emosens", learning_rate=lr)[0] == lr


@pytest.mark.parametrize(
    ("name", "version"), [(name, version) for name, cls in emo_hf.FAMILY.items() for version in cls.versions]
)
def test_betas_are_the_generations_where_the_trainers_were_left(
    name: str, version: str, tmp_path: Path, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = emo_hf.FAMILY[name].versions[version].betas
    expected = (0.9, 0.995) if version in ("v3.6", "v3.9") else (0.9, 0.999)
    if version == "v3.0" and name in ("emolynx", "emoneco"):
        expected = (0.9, 0.99)
    changes = {"optim": name, "optim_args": f"version={version}", "learning_rate": 1e-3}
    assert made(tmp_path, model, **changes) == (1e-3, expected)
    assert wanted == expected
    assert len(said(caplog)) == (0 if expected == (0.9, 0.999) else 1), "only what differs is worth a line"
    assert made(tmp_path, model, **changes, adam_beta2=0.97) == (1e-3, (0.9, 0.97))
    caplog.clear()
    changes["optim_args"] += ",beta2=0.999"
    assert made(tmp_path, model, **changes) == (1e-3, (0.9, 0.999))
    assert said(caplog) == []


def rates_of(trainer: Trainer, key: str = "emo/effective_lr") -> list[float]:
    """What is logged of a rate, divided by the factor that the law gave in the same step."""
    return [line[key] / line["emo/coefficient"] for line in tiny.train_lines(trainer)]


def test_warm_up_and_decay_scale_a_rate_that_is_made_from_the_loss(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, optim="emosens", learning_rate=TRAINER_LR, max_steps=8, warmup_steps=4, lr_scheduler_type="linear"
    )
    trainer.train()
    logged = [line["learning_rate"] for line in tiny.train_lines(trainer)]
    assert logged == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25])
    assert rates_of(trainer) == pytest.approx(logged)
    lines = tiny.train_lines(trainer)
    assert all(1e-5 < line["emo/coefficient"] <= 3e-3 for line in lines), "the rate is made from the loss"
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0, "the scheduler has the last word over the group's"


def test_ratios_of_groups_scale_a_rate_that_is_made_from_the_loss(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, model=lora(), optim="emocats", optim_args="lora_b_lr_ratio=16,head_lr=0.25", max_steps=3,
        learning_rate=TRAINER_LR, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    for name, rate in (("lora_a", 1.0), ("lora_b", 16.0), ("head", 0.25)):
        assert rates_of(trainer, f"emo/effective_lr/{name}") == pytest.approx([rate] * 3)


@pytest.mark.parametrize("name", SCALED)
def test_a_rate_of_0_moves_nothing_and_the_steps_after_it_move(name: str, tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, optim=name, learning_rate=TRAINER_LR, max_steps=2, warmup_steps=1, weight_decay=0.1,
        lr_scheduler_type="constant_with_warmup",
    )  # fmt: skip
    weights: list[torch.Tensor] = [trainer.model.classifier.weight.detach().clone()]
    trainer.add_callback(Weights(weights))
    trainer.train()
    assert [line["emo/effective_lr"] > 0 for line in tiny.train_lines(trainer)] == [False, True]
    begin, after_0, after_1 = weights
    assert torch.equal(begin, after_0)
    assert not torch.equal(after_0, after_1)


class Weights(TrainerCallback):
    """Notes the head's weights after each step."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights = weights

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.weights.append(model.classifier.weight.detach().clone())


def b_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [param for name, param in model.named_parameters() if "lora_B" in name]


class SizeOfB(TrainerCallback):
    """Notes the L1 norm of LoRA's B after each step."""

    def __init__(self) -> None:
        self.sizes: list[float] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.sizes.append(sum(param.detach().abs().sum().item() for param in b_of(model)))


def test_emovoid_keeps_the_size_of_a_and_lets_b_grow_from_nothing(tmp_path: Path) -> None:
    watch = SizeOfB()
    trainer = tiny.trainer(
        tmp_path, model=lora(), optim="emovoid", learning_rate=TRAINER_LR, max_steps=6, lr_scheduler_type="constant",
        callbacks=[watch],
    )  # fmt: skip
    before = sum(param.abs().sum() for name, param in trainer.model.named_parameters() if "lora_A" in name).item()
    trainer.train()
    assert [group["name"] for group in trainer.optimizer.param_groups][:2] == ["lora_a", "lora_b"]
    assert unwrap(trainer.optimizer)._rule.memory()["norm"] == pytest.approx(before, rel=1e-6)
    assert watch.sizes[0] > 0
    assert watch.sizes[-1] > 1.5 * watch.sizes[0]


def test_emovoid_does_not_erase_a_first_group_that_begins_at_nothing(tmp_path: Path) -> None:
    model, watch = lora(), SizeOfB()
    others = [param for name, param in model.named_parameters() if param.requires_grad and "lora_B" not in name]
    optimizer = emo_hf.EmoVoid([{"params": b_of(model), "name": "lora_b"}, {"params": others}])
    trainer = tiny.trainer(
        tmp_path, model=model, optim="adamw_torch", optimizers=(optimizer, None), max_steps=6, callbacks=[watch],
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    assert optimizer.emotion.observations == 6
    assert watch.sizes[0] > 0
    assert min(watch.sizes) > 0.5 * watch.sizes[0], "what was learnt is not pulled back to nothing"
    directions = torch.cat([param.detach().flatten() for param in b_of(model)])
    assert directions.abs().unique().numel() > 1, "and learning goes on"
