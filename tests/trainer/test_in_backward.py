"""Steps in backward through real Trainers: an option, the same run, and the arguments that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

import emo_hf
from tests import tiny
from tests.emo_cases import assert_identical
from tests.trainer.kit import SaveAt, emo_of, outcome, trained

IN_BACKWARD = "step_in_backward=true"


def run(folder: Path, **changes: Any) -> Trainer:
    return trained(folder, **{"max_grad_norm": 0.0, "weight_decay": 0.1, "max_steps": 6, **changes})


@pytest.mark.parametrize("optim", ["emonavi", "emofact"])
def test_the_run_is_the_ordinary_one_to_the_last_bit_and_so_is_a_resumed_one_and_then_the_model_is_an_ordinary_one(
    tmp_path: Path, optim: str
) -> None:
    ordinary = run(tmp_path / "ordinary", optim=optim)
    other = run(tmp_path, optim=optim, optim_args=IN_BACKWARD, callbacks=[SaveAt(3)])
    assert_identical(outcome(other), outcome(ordinary))
    # The gradients were gone when the Trainer measured them, so this was no ordinary run.
    assert {line["grad_norm"] for line in tiny.train_lines(other)} == {0.0}
    assert all(line["grad_norm"] > 0.0 for line in tiny.train_lines(ordinary))
    resumed = run(tmp_path, optim=optim, optim_args=IN_BACKWARD, resume=tmp_path / "checkpoint-3")
    assert_identical(outcome(resumed), outcome(other))
    for _ in range(2):
        assert not any(param._post_accumulate_grad_hooks for param in other.model.parameters())
        other.train()


def test_gradients_are_clipped_by_value(tmp_path: Path) -> None:
    runs = [run(tmp_path, optim_args=IN_BACKWARD + more) for more in ("", ",clip_value=1e-4")]
    free, clipped = (max(state["exp_avg"].abs().max() for state in emo_of(made).state.values()) for made in runs)
    assert clipped.item() <= 1e-4 < free.item()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_grad_norm": 1.0}, "max_grad_norm is 1 .* set --max_grad_norm 0; .* add clip_value="),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2: set --gradient_accumulation_steps 1"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}}, "accumulation_steps is 2"),
        ({"optim": "emovoid"}, "the rule of EmoVoid v3.9 looks at a whole parameter group"),
        ({"optim_args": f"{IN_BACKWARD},emo_law=settle"}, "take guard=False"),
        ({"optim_args": "clip_value=1.0"}, "clip_value=1.0 is for step_in_backward=True"),
        ({"optim_args": f"{IN_BACKWARD},clip_value=0"}, "clip_value=.* takes a number above 0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_when_the_trainer_is_made(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.trainer(tmp_path, **{"max_grad_norm": 0.0, "optim_args": IN_BACKWARD, **changes})


def test_an_optimizer_that_was_made_so_is_not_left_unclipped_in_silence_and_one_without_the_option_is_clipped(
    tmp_path: Path,
) -> None:
    model = tiny.classifier()
    optimizer = emo_hf.EmoNavi(model.parameters(), lr=1e-3, step_in_backward=True)
    with pytest.raises(ValueError, match="max_grad_norm is 1"):
        run(tmp_path, model=model, optim="adamw_torch", optimizers=(optimizer, None), max_grad_norm=1.0)
    stands = {"max_grad_norm": 1.0, "gradient_accumulation_steps": 2, "optim_args": "step_in_backward=false"}
    assert run(tmp_path, **stands).state.global_step == 6
