"""What else happens to parameters, optimizers and trainings in one process: nothing leaks, nothing is lost."""

from __future__ import annotations

import itertools
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback

import emo_hf
from emo_hf import EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.emo_cases import (
    assert_identical,
    each_implementation,
    each_optimizer,
    give_gradients,
    losses,
    make,
    parameters,
    version_of,
)
from tests.ranks import fork_server


@pytest.fixture(autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


@each_optimizer
def test_a_parameter_frozen_in_mid_run_rests_and_goes_on_from_its_state(cls: type[EmoOptimizer]) -> None:
    frozen, moving = parameters()
    optimizer = cls([{"params": [moving]}, {"params": [frozen]}])  # EmoVoid pulls the whole of its first group
    rested: tuple[Any, ...] = ()
    for step, loss in enumerate(losses(9)):
        give_gradients([frozen, moving], step)
        if 3 <= step < 6:
            frozen.requires_grad_(False)
            frozen.grad = None
        else:
            frozen.requires_grad_(True)
        before = frozen.detach().clone()
        optimizer.observe(loss)
        optimizer.step()
        if step == 3:
            rested = before, {key: value.clone() for key, value in optimizer.state[frozen].items()}
        if step == 5:
            assert_identical((frozen.detach(), dict(optimizer.state[frozen])), rested)
    assert optimizer.emotion.observations == 9
    assert not torch.equal(frozen, rested[0])


@each_implementation
@pytest.mark.parametrize(("steps_before", "dtype"), [(0, torch.bfloat16), (3, torch.float64)])
def test_parameters_that_change_their_dtype_after_construction_train_on(
    cls: type[EmoOptimizer], implementation: str, steps_before: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    lr = 100.0 if version_of(cls).lr_is_a_scale else 0.01  # enough for bfloat16 to notice
    optimizer = make(cls, model.parameters(), implementation, lr=lr, use_shadow=True)
    for step, loss in enumerate(losses(6)):
        if step == steps_before:
            model.to(dtype)
        before = [param.detach().clone() for param in model.parameters()]
        give_gradients(list(model.parameters()), step)
        optimizer.observe(loss)
        optimizer.step()
        for param, old in zip(model.parameters(), before, strict=True):
            assert param.isfinite().all()
            assert not torch.equal(param, old)
    assert optimizer.emotion.observations == 6


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_the_model_resets_itself_are_as_good(set_to_none: bool) -> None:
    def train(by_model: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        made = EmoNavi(model.parameters(), lr=0.05)
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, made)
        for step in range(6):
            (model if by_model else optimizer).zero_grad(set_to_none=set_to_none)
            accelerator.backward(model(torch.full((2, 3), float(step))).square().mean())
            optimizer.step()
        assert (made.emotion.observations, made.emotion.skipped) == (6, 0)
        return [param.detach() for param in model.parameters()]

    assert_identical(train(True), train(False))


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


def run(folder: Path, **changes: Any) -> tuple[list[Any], Any]:
    trainer = tiny.trainer(folder, learning_rate=5e-3, **changes)
    trainer.train()
    lines = [{k: v for k, v in line.items() if "runtime" not in k} for line in tiny.train_lines(trainer)]
    return lines, unwrap(trainer.optimizer).state_dict()


def test_a_search_over_options_leaks_nothing_from_one_training_into_the_next(tmp_path: Path) -> None:
    trials = [
        {"optim": name, "optim_args": f"use_shadow={use_shadow}", "max_steps": 5}
        for name, use_shadow in zip(emo_hf.FAMILY, itertools.cycle(("false", "true")), strict=False)
    ]
    first = [run(tmp_path / "a", **trial) for trial in trials]
    again = [run(tmp_path / "b", **trial) for trial in reversed(trials)]
    assert_identical(first, again[::-1])


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
    emotion = unwrap(trainer.optimizer).emotion
    assert (emotion.observations, emotion.skipped) == (4, 0)
    assert [line["emo/observations"] for line in tiny.train_lines(trainer)] == [1, 2, 3, 4]


def train_on(optimizer: EmoOptimizer, answer: Any) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step, loss in enumerate(losses(5)):
        give_gradients(params, step)
        optimizer.observe(loss)
        optimizer.step()
    answer.put((optimizer.emotion, [param.detach().tolist() for param in params]))


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
        "save_steps": 2, "model": tiny.classifier(dropout=0.0), "data": tiny.examples(16),
    }  # fmt: skip
    felt = tiny.Felt()
    whole = tiny.trainer(tmp_path, **changes, callbacks=[felt])
    whole.train()
    assert felt.losses == pytest.approx([line["loss"] for line in tiny.train_lines(whole)])
    assert len(felt.losses) == 4
    resumed = tiny.trainer(tmp_path, **changes | {"model": tiny.classifier(dropout=0.0)})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert unwrap(resumed.optimizer).emotion == unwrap(whole.optimizer).emotion
    assert_identical(list(resumed.model.state_dict().values()), list(whole.model.state_dict().values()))


def test_layers_frozen_and_let_go_in_a_trainer_run_leave_the_emotion_at_work(tmp_path: Path) -> None:
    class Freezing(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.bert.embeddings.requires_grad_(not 2 <= state.global_step < 5)
            weights.append(model.bert.embeddings.word_embeddings.weight.detach().clone())

    weights: list[torch.Tensor] = []
    trainer = tiny.trainer(tmp_path, callbacks=[Freezing()], max_steps=8)
    trainer.train()
    rested = [torch.equal(one, other) for one, other in pairwise(weights)]
    assert rested == [False, False, True, True, True, False, False]
    assert unwrap(trainer.optimizer).emotion.observations == 8
