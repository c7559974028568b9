"""Optimizers of others around emo optimizers: pytorch_optimizer's wrappers, and torch's averaging of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.integrations.accelerate import unwrap

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


def listen(optimizer: EmoOptimizer) -> list[float]:
    """The losses that the emotion is given from now on."""
    felt: list[float] = []
    law = optimizer._engine.law
    feel = law.feel

    def noting(loss: float) -> Any:
        felt.append(loss)
        return feel(loss)

    law.feel = noting
    return felt


def train(
    model: Regression, wrapper: Any, emo: EmoOptimizer, *, twice: bool = False, steps: int = STEPS
) -> list[float]:
    """Train with `observe`, and give the loss of each step.

    Args:
        model: what is trained.
        wrapper: steps.
        emo: is shown the loss.
        twice: whether each step evaluates the loss once more by a closure, at weights that were moved for it.
    """

    def closure() -> torch.Tensor:
        wrapper.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    losses = []
    for _ in range(steps):
        loss = model.loss()
        losses.append(loss.item())
        emo.observe(loss)
        wrapper.zero_grad()
        loss.backward()
        if twice:
            wrapper.step(closure)
        else:
            wrapper.step()
    return losses


@pytest.mark.parametrize(
    ("name", "cls"),
    [("Lookahead", EmoFact), ("OrthoGrad", EmoNavi), ("PCGrad", EmoLynx), ("ScheduleFreeWrapper", EmoNavi),
     ("TRAC", EmoFact)],
)  # fmt: skip
def test_within_a_wrapper_each_step_feels_the_loss_that_was_observed(name: str, cls: type[EmoOptimizer]) -> None:
    model = Regression()
    emo = cls(model.parameters(), lr=3e-3)
    wrapper = pytorch_optimizer(name)(emo)
    if name == "ScheduleFreeWrapper":
        wrapper.train()
    felt = listen(emo)
    losses = train(model, wrapper, emo)
    assert felt == losses
    assert unwrap(wrapper) is emo, "the tap on accelerate would find it"
    if name != "TRAC":  # which begins with steps of next to nothing
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "cls"), [("SAM", EmoNavi), ("LookSAM", EmoFact), ("FriendlySAM", EmoLynx), ("WSAM", EmoNavi)]
)
def test_sharpness_aware_steps_feel_the_loss_at_the_weights_and_not_beside_them(
    name: str, cls: type[EmoOptimizer]
) -> None:
    model = Regression()
    given = (model, model.parameters()) if name == "WSAM" else (model.parameters(),)
    wrapper = pytorch_optimizer(name)(*given, base_optimizer=cls, lr=3e-3)
    felt = listen(wrapper.base_optimizer)
    losses = train(model, wrapper, wrapper.base_optimizer, twice=True)
    assert felt == losses
    assert losses[-1] < losses[0]


def lookahead(model: Regression) -> tuple[Any, EmoOptimizer]:
    emo = EmoLynx(model.parameters(), lr=3e-3)
    return pytorch_optimizer("Lookahead")(emo), emo


def test_the_emotion_is_in_the_state_of_lookahead_and_goes_on_from_there() -> None:
    whole = Regression()
    wrapper, emo = lookahead(whole)
    expected = train(whole, wrapper, emo, steps=2 * STEPS)

    first = Regression()
    wrapper, emo = lookahead(first)
    train(first, wrapper, emo)
    resumed = Regression()
    resumed.load_state_dict(first.state_dict())
    other, other_emo = lookahead(resumed)
    other.load_state_dict(wrapper.state_dict())
    assert other_emo.emotion == emo.emotion
    assert other_emo.emotion.observations == STEPS
    assert train(resumed, other, other_emo) == pytest.approx(expected[STEPS:], rel=1e-6)


Average = Callable[[torch.nn.Module], AveragedModel]


@pytest.mark.parametrize(
    ("average", "cls"),
    [(AveragedModel, EmoFact), (lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)), EmoLynx)],
)
def test_torchs_averaged_weights_and_their_rates_go_with_the_emotion(
    average: Average, cls: type[EmoOptimizer]
) -> None:
    model = Regression()
    emo = cls(model.parameters(), lr=3e-3)
    averaged, schedule = average(model), SWALR(emo, swa_lr=1e-3, anneal_epochs=4, anneal_strategy="linear")
    rates, losses, felt = [], [], listen(emo)
    for _ in range(2 * STEPS):
        losses += train(model, emo, emo, steps=1)
        (taken,), (group,) = emo.effective_lr.values(), emo.param_groups
        assert taken == pytest.approx(group["lr"] * emo.emotion.coefficient)
        averaged.update_parameters(model)
        schedule.step()
        rates.append(group["lr"])
    assert rates[4:] == [pytest.approx(1e-3)] * (2 * STEPS - 4), "the scheduler's rate is left as it was made"
    assert felt == losses
    assert averaged.module.loss().item() < losses[0]
