"""The loss that the optimizer feels is the loss that the Trainer logs, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import emo_hf
from emo_hf.integrations import accelerate
from emo_hf.integrations.accelerate import unwrap
from tests import tiny


def mean_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """A user's own loss, normalized over the whole accumulated batch as the Trainer expects of one."""
    total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return 2.0 * total / num_items_in_batch


@pytest.mark.parametrize("accumulation", [1, 4])  # 37 examples in fours: 10 batches, so that the last window is short
@pytest.mark.parametrize(
    "changes",
    [{}, {"label_smoothing_factor": 0.1}, {"compute_loss_func": mean_loss}, {"max_grad_norm": 0.0}],
    ids=["plain", "label smoothing", "own loss", "no clipping"],
)
def test_the_felt_loss_is_the_logged_loss(accumulation: int, changes: dict, tmp_path: Path) -> None:
    felt = tiny.Felt()
    trainer = tiny.trainer(
        tmp_path, gradient_accumulation_steps=accumulation, num_train_epochs=2, callbacks=[felt], **changes
    )
    trainer.train()
    logged = [line["loss"] for line in tiny.train_lines(trainer)]
    assert len(logged) == (20 if accumulation == 1 else 6)
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
    trainer = tiny.trainer(tmp_path, model=model, optim="adamw_torch", callbacks=callbacks, **given)
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert felt.losses == [line["loss"] for line in lines]
    assert lines[-1]["emo/observations"] == 10


def test_with_another_optimizer_the_callback_is_silent(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, optim="adamw_torch")
    trainer.train()
    assert not any(key.startswith("emo/") for line in trainer.state.log_history for key in line)


def test_two_trainers_in_one_process_feel_their_own_losses(tmp_path: Path) -> None:
    first = tiny.trainer(tmp_path / "a")
    first.train()
    before = unwrap(first.optimizer).emotion
    second = tiny.trainer(tmp_path / "b", data=tiny.examples(12))
    second.train()
    assert unwrap(first.optimizer).emotion == before
    assert unwrap(second.optimizer).emotion.observations == 3


def test_a_trainer_whose_optimizer_is_not_an_emo_optimizer_is_not_touched_by_the_tap(tmp_path: Path) -> None:
    tiny.trainer(tmp_path / "emo").train()  # puts the tap in place

    def final_weights(folder: Path) -> list[torch.Tensor]:
        trainer = tiny.trainer(folder, optim="adamw_torch")
        trainer.train()
        return list(trainer.model.state_dict().values())

    tapped = final_weights(tmp_path / "tapped")
    accelerate.uninstall()
    try:
        untapped = final_weights(tmp_path / "untapped")
    finally:
        accelerate.install()
    assert all(torch.equal(one, other) for one, other in zip(tapped, untapped, strict=True))
