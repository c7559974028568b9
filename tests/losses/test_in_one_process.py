"""What else happens to parameters, optimizers and trainings in one process: nothing leaks, nothing is lost."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback

from emo_hf import EmoLynx, EmoNavi
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.emo_cases import assert_identical, parameters, run
from tests.ranks import fork_server

pytestmark = pytest.mark.usefixtures("registered")


def test_two_accelerators_with_two_optimizers_each_feel_four_losses_apart() -> None:
    made = []
    for scale in (1.0, 100.0):
        accelerator = Accelerator(cpu=True)
        parts = [nn.Linear(2, 1), nn.Linear(1, 1)]
        optimizers = [cls(part.parameters()) for cls, part in zip((EmoNavi, EmoLynx), parts, strict=True)]
        made.append((accelerator, parts, accelerator.prepare(*optimizers), scale))
    for _ in range(3):
        for accelerator, (first, second), optimizers, scale in made:
            loss = second(first(torch.ones(4, 2))).square().mean() * 0.0 + scale
            accelerator.backward(loss)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for _, _, optimizers, scale in made:
        for optimizer in optimizers:
            emotion = unwrap(optimizer).emotion
            assert (emotion.short, emotion.observations, emotion.skipped) == (pytest.approx(scale), 3, 0)


def test_a_batch_size_that_does_not_fit_is_reduced_and_the_failed_start_leaves_no_trace(tmp_path: Path) -> None:
    sizes: list[int] = []

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        sizes.append(len(labels))
        if len(labels) > 7:
            raise RuntimeError("CUDA out of memory.")
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    trainer = tiny.trainer(
        tmp_path, auto_find_batch_size=True, per_device_train_batch_size=8, compute_loss_func=loss, max_steps=4
    )
    trainer.train()
    assert sizes[0] == 8
    assert max(sizes[-4:]) <= 7
    assert [line["emo/observations"] for line in tiny.train_lines(trainer)] == [1, 2, 3, 4]
    assert unwrap(trainer.optimizer).emotion.skipped == 0


def train_on(optimizer: EmoNavi, answer: Any) -> None:
    run(optimizer, range(5))
    answer.put((optimizer.emotion, [param.tolist() for param in optimizer.param_groups[0]["params"]]))


def test_an_optimizer_travels_into_a_new_process_and_trains_there() -> None:
    server = fork_server()
    here, there = server.SimpleQueue(), server.SimpleQueue()
    process = server.Process(target=train_on, args=(EmoNavi(parameters()), there))
    process.start()
    train_on(EmoNavi(parameters()), here)
    answer = there.get()
    process.join(60)
    assert answer == here.get()


def test_a_model_that_the_trainer_compiles_feels_what_it_logs_and_resumes(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 4, "save_strategy": "steps",
        "save_steps": 2, "data": tiny.examples(16),
    }  # fmt: skip
    felt = tiny.Felt()
    whole = tiny.trainer(tmp_path, **changes, model=tiny.classifier(dropout=0.0), callbacks=[felt])
    whole.train()
    assert felt.losses == pytest.approx([line["loss"] for line in tiny.train_lines(whole)])
    assert len(felt.losses) == 4
    resumed = tiny.trainer(tmp_path, **changes, model=tiny.classifier(dropout=0.0))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert unwrap(resumed.optimizer).emotion == unwrap(whole.optimizer).emotion
    assert_identical(list(resumed.model.state_dict().values()), list(whole.model.state_dict().values()))


def test_layers_frozen_and_let_go_in_a_trainer_run_rest_and_leave_the_emotion_at_work(tmp_path: Path) -> None:
    class Freezing(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.bert.embeddings.requires_grad_(not 2 <= state.global_step < 5)
            weights.append(model.bert.embeddings.word_embeddings.weight.detach().clone())

    weights: list[torch.Tensor] = []
    trainer = tiny.trainer(tmp_path, callbacks=[Freezing()], max_steps=8)
    trainer.train()
    rested = [torch.equal(one, other) for one, other in itertools.pairwise(weights)]
    assert rested == [False, False, True, True, True, False, False]
    assert unwrap(trainer.optimizer).emotion.observations == 8
