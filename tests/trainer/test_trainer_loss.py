"""The loss that the optimizer feels is the loss that the Trainer logs, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from tests import tiny
from tests.trainer.kit import emo_of, trained


def mean_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """A user's own loss, normalized over the whole accumulated batch as the Trainer expects of one."""
    total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return 2.0 * total / num_items_in_batch


@pytest.mark.parametrize(
    ("accumulation", "changes"),
    [
        (1, {}), (4, {"label_smoothing_factor": 0.1}), (4, {"compute_loss_func": mean_loss, "max_grad_norm": 0.0}),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else str(given),
)  # fmt: skip
def test_the_felt_loss_is_the_logged_loss(accumulation: int, changes: dict[str, Any], tmp_path: Path) -> None:
    felt = tiny.Felt()
    trainer = trained(tmp_path, gradient_accumulation_steps=accumulation, callbacks=[felt], **changes)
    logged = [line["loss"] for line in tiny.train_lines(trainer)]
    assert len(logged) == (10 if accumulation == 1 else 3)  # 10 batches, so that the last window is short
    assert felt.losses == logged


@pytest.mark.parametrize("way", ["optimizer_cls_and_kwargs", "optimizers"])
def test_without_registration_the_loss_arrives_too(way: str, tmp_path: Path) -> None:
    emo_hf.unregister()
    model, felt = tiny.classifier(), tiny.Felt()
    if way == "optimizers":
        given = {"optimizers": (emo_hf.create_optimizer("emolynx", model, lr=1e-4), None)}
    else:
        given = {"optimizer_cls_and_kwargs": (emo_hf.EmoLynx, {"lr": 1e-4})}
    callbacks = [felt, emo_hf.EmoCallback()]
    trainer = trained(tmp_path, model=model, optim="adamw_torch", callbacks=callbacks, max_steps=3, **given)
    lines = tiny.train_lines(trainer)
    assert felt.losses == [line["loss"] for line in lines]
    assert lines[-1]["emo/observations"] == 3


def test_two_trainers_in_one_process_feel_their_own_losses(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", max_steps=2)
    before = emo_of(first).emotion
    second = trained(tmp_path / "b", data=tiny.examples(12))
    assert emo_of(first).emotion == before
    assert emo_of(second).emotion.observations == 3
