"""Optimizers of others around emo optimizers: pytorch_optimizer's wrappers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

STEPS = 20

pytestmark = pytest.mark.filterwarnings("error:.*was called without a loss.*:RuntimeWarning")


class Regression(torch.nn.Module):
    """A regression on noise that is the same every time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.x = torch.randn(32, 4)

    def loss(self) -> torch.Tensor:
        return (self.net(self.x) - self.x.sum(1, keepdim=True)).square().mean()


def pytorch_optimizer(name: str) -> Any:
    return getattr(pytest.importorskip("pytorch_optimizer", reason="needs pytorch_optimizer"), name)


def train(
    model: Regression, wrapper: Any, emo: EmoOptimizer, *, twice: bool = False, steps: int = STEPS
) -> list[float]:
    """Train with `observe`, and give the loss of each step, which is what the emotion was given.

    Args:
        model: what is trained.
        wrapper: steps.
        emo: is shown the loss.
        twice: whether each step evaluates the loss once more by a closure, at weights that were moved for it.
        steps: how many.
    """
    losses, felt = [], tiny.felt_by(emo)

    def closure() -> torch.Tensor:
        wrapper.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    for _ in range(steps):
        loss = model.loss()
        losses.append(loss.item())
        emo.observe(loss)
        wrapper.zero_grad()
        loss.backward()
        wrapper.step(*[closure] * twice)
    assert felt == losses
    return losses


@pytest.mark.parametrize(
    ("name", "cls"),
    [("OrthoGrad", EmoNavi), ("PCGrad", EmoLynx), ("ScheduleFreeWrapper", EmoNavi)],
)
def test_within_a_wrapper_each_step_feels_the_loss_that_was_observed(name: str, cls: type[EmoOptimizer]) -> None:
    model = Regression()
    emo = cls(model.parameters(), lr=3e-3)
    wrapper = pytorch_optimizer(name)(emo)
    if name == "ScheduleFreeWrapper":
        wrapper.train()
    losses = train(model, wrapper, emo)
    assert unwrap(wrapper) is emo, "the tap on accelerate would find it"
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "cls"), [("SAM", EmoNavi), ("LookSAM", EmoFact), ("WSAM", EmoLynx)])
def test_sharpness_aware_steps_feel_the_loss_at_the_weights_and_not_beside_them(
    name: str, cls: type[EmoOptimizer]
) -> None:
    model = Regression()
    given = (model, model.parameters()) if name == "WSAM" else (model.parameters(),)
    wrapper = pytorch_optimizer(name)(*given, base_optimizer=cls, lr=3e-3)
    losses = train(model, wrapper, wrapper.base_optimizer, twice=True)
    assert losses[-1] < losses[0]


def lookahead(model: Regression) -> tuple[Any, EmoOptimizer]:
    emo = EmoLynx(model.parameters(), lr=3e-3)
    return pytorch_optimizer("Lookahead")(emo), emo


def test_the_emotion_is_in_the_state_of_lookahead_and_goes_on_from_there() -> None:
    whole, first, resumed = Regression(), Regression(), Regression()
    expected = train(whole, *lookahead(whole), steps=2 * STEPS)
    wrapper, emo = lookahead(first)
    train(first, wrapper, emo)
    resumed.load_state_dict(first.state_dict())
    other, other_emo = lookahead(resumed)
    other.load_state_dict(wrapper.state_dict())
    assert other_emo.emotion == emo.emotion
    assert other_emo.emotion.observations == STEPS
    assert train(resumed, other, other_emo) == pytest.approx(expected[STEPS:], rel=1e-6)
