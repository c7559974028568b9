"""Steps in backward through real Trainers: an option, the same run, and the arguments that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.emo_cases import assert_identical

IN_BACKWARD = "step_in_backward=true"


def run(folder: Path, resume: str | None = None, **changes: Any) -> Trainer:
    settings = {"max_grad_norm": 0.0, "weight_decay": 0.1, "max_steps": 8, **changes}
    made = tiny.trainer(folder, **settings)
    made.train(resume_from_checkpoint=resume)
    return made


def outcome(made: Trainer) -> Any:
    told = [{key: line[key] for key in line if key != "grad_norm"} for line in tiny.train_lines(made)]
    return dict(made.model.state_dict()), unwrap(made.optimizer).state_dict(), told


@pytest.mark.parametrize("optim", ["emonavi", "emofact", "emolynx"])
def test_the_run_is_the_ordinary_one_to_the_last_bit(tmp_path: Path, optim: str) -> None:
    ordinary = run(tmp_path / "ordinary", optim=optim)
    other = run(tmp_path / "in backward", optim=optim, optim_args=IN_BACKWARD)
    assert_identical(outcome(other), outcome(ordinary))
    # The gradients were gone when the Trainer measured them, so this was no ordinary run.
    assert {line["grad_norm"] for line in tiny.train_lines(other)} == {0.0}
    assert all(line["grad_norm"] > 0.0 for line in tiny.train_lines(ordinary))


def test_a_run_is_resumed_to_the_last_bit(tmp_path: Path) -> None:
    settings = {"optim_args": IN_BACKWARD, "save_strategy": "steps", "save_steps": 4}
    whole = run(tmp_path, **settings)
    resumed = run(tmp_path, resume=str(tmp_path / "checkpoint-4"), **settings)
    assert_identical(outcome(resumed)[:2], outcome(whole)[:2])


def test_after_training_the_model_is_an_ordinary_one_and_can_be_trained_again(tmp_path: Path) -> None:
    made = run(tmp_path, optim_args=IN_BACKWARD)
    assert not any(param._post_accumulate_grad_hooks for param in made.model.parameters())
    made.train()
    assert unwrap(made.optimizer).emotion.observations in (8, 16)
    assert not any(param._post_accumulate_grad_hooks for param in made.model.parameters())


def test_gradients_are_clipped_by_value(tmp_path: Path) -> None:
    free = run(tmp_path / "free", optim_args=IN_BACKWARD)
    clipped = run(tmp_path / "clipped", optim_args=f"{IN_BACKWARD},clip_value=1e-4")
    sizes = [
        max(state["exp_avg"].abs().max() for state in unwrap(made.optimizer).state.values()).item()
        for made in (free, clipped)
    ]
    assert sizes[1] <= 1e-4 < sizes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_grad_norm": 1.0}, "max_grad_norm is 1 .* set --max_grad_norm 0; .* add clip_value="),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2: set --gradient_accumulation_steps 1"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
            "gradient_accumulation_steps is 2",
        ),
        ({"optim": "emovoid"}, "the rule of EmoVoid v3.9 looks at a whole parameter group"),
        ({"optim_args": f"{IN_BACKWARD},emo_law=settle"}, "take guard=False"),
        ({"optim_args": "clip_value=1.0"}, "clip_value=1.0 is for step_in_backward=True"),
        ({"optim_args": f"{IN_BACKWARD},clip_value=0"}, "clip_value must be a positive number"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_when_the_trainer_is_made(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.trainer(tmp_path, **{"max_grad_norm": 0.0, "optim_args": IN_BACKWARD, **changes})


def test_an_optimizer_that_was_made_so_is_not_left_unclipped_in_silence(tmp_path: Path) -> None:
    model = tiny.classifier()
    optimizer = emo_hf.EmoNavi(model.parameters(), lr=1e-3, step_in_backward=True)
    made = tiny.trainer(tmp_path, model=model, optim="adamw_torch", optimizers=(optimizer, None), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="max_grad_norm is 1"):
        made.train()


def test_without_the_option_the_defaults_of_the_trainer_stand(tmp_path: Path) -> None:
    made = run(tmp_path, max_grad_norm=1.0, gradient_accumulation_steps=2, optim_args="step_in_backward=false")
    assert made.state.global_step == 8
