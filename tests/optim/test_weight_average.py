"""An average of the weights beside them (`average_weights`): what it is, that it comes and goes, that it is saved."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import emo_hf
from emo_hf.optim.state_keys import AVERAGE
from tests.emo_cases import assert_identical, give_gradients, parameters

Made = tuple[torch.optim.Optimizer, Any]
"""An optimizer, and what is shown its losses."""


def emonavi(params: Any, **options: Any) -> Made:
    optimizer = emo_hf.EmoNavi(params, lr=1e-2, emo_law="settle", average_weights=True, **options)
    return optimizer, optimizer


def emoairy(params: Any) -> Made:
    """One whose rule keeps no state."""
    optimizer = emo_hf.EmoFact(params, version="v3.6", lr=1e-2, emo_law="settle", average_weights=True)
    return optimizer, optimizer


def adamw(params: Any) -> Made:
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    return optimizer, emo_hf.attach(optimizer, law="settle", average_weights=True)


def sgd(params: Any) -> Made:
    optimizer = torch.optim.SGD(params, lr=1e-2)
    return optimizer, emo_hf.attach(optimizer, law="settle", average_weights=True)


each = pytest.mark.parametrize("make", [emonavi, emoairy, adamw, sgd])


def train(made: Made, params: list[nn.Parameter], steps: range) -> list[list[torch.Tensor]]:
    optimizer, shown = made
    weights = []
    for step in steps:
        give_gradients(params, step)
        shown.observe(2.0 * 0.98**step)
        optimizer.step()
        weights.append([param.detach().clone() for param in params])
    return weights


def held(params: list[nn.Parameter]) -> list[torch.Tensor]:
    return [param.detach().clone() for param in params]


@each
def test_it_is_the_average_of_the_weights_after_each_step_with_late_ones_weighing_most(
    make: Callable[..., Made],
) -> None:
    params = parameters()
    made = make(params)
    weights = train(made, params, range(40))
    wanted = weights[0]
    for k, after_step in enumerate(weights[1:], 2):
        wanted = [old + 8 / (k + 7) * (new - old) for old, new in zip(wanted, after_step, strict=True)]
    made[1].eval()
    made[1].eval()
    for shown, average in zip(params, wanted, strict=True):
        torch.testing.assert_close(shown.detach(), average, rtol=1e-5, atol=1e-6)
    made[1].train()
    made[1].train()
    assert_identical(held(params), weights[-1])


@each
def test_an_evaluation_in_between_changes_nothing(make: Callable[..., Made]) -> None:
    results = []
    for looks in (False, True):
        params = parameters()
        made = make(params)
        for step in range(12):
            train(made, params, range(step, step + 1))
            if looks:
                made[1].eval()
                made[1].train()
        made[1].eval()
        results.append(held(params))
    assert_identical(*results)


@each
def test_a_step_with_the_gradients_of_the_average_is_refused(make: Callable[..., Made]) -> None:
    params = parameters()
    made = make(params)
    train(made, params, range(3))
    made[1].eval()
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) before the forward pass"):
        train(made, params, range(1))


def stored(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@each
@pytest.mark.parametrize("shown", [False, True], ids=["weights", "average"])
def test_what_was_saved_with_either_in_the_parameters_goes_on_to_the_last_bit(
    make: Callable[..., Made], shown: bool
) -> None:
    params = parameters()
    made = make(params)
    train(made, params, range(6))
    if shown:
        made[1].eval()
    saved, model = stored(made[0].state_dict()), held(params)
    made[1].train()
    train(made, params, range(6, 12))
    again = [nn.Parameter(param) for param in model]
    other = make(again)
    other[0].load_state_dict(saved)
    other[1].train()
    train(other, again, range(6, 12))
    assert_identical(held(again), held(params))
    for each_made in (made, other):
        each_made[1].eval()
    assert_identical(held(again), held(params))


@pytest.mark.parametrize("make", [emonavi, adamw])
def test_averages_of_bfloat16_are_float32_also_after_loading(make: Callable[..., Made]) -> None:
    params = [nn.Parameter(param.detach().bfloat16()) for param in parameters()]
    made = make(params)
    train(made, params, range(20))
    averages = [made[0].state[param][AVERAGE].clone() for param in params]
    assert {average.dtype for average in averages} == {torch.float32}
    again = [nn.Parameter(param) for param in held(params)]
    other = make(again)
    other[0].load_state_dict(stored(made[0].state_dict()))
    assert_identical([other[0].state[param][AVERAGE] for param in again], averages)
    made[1].eval()
    assert_identical(held(params), [average.bfloat16() for average in averages])


def test_the_state_is_none_where_no_average_is_asked_for() -> None:
    params = parameters()
    optimizer = emo_hf.EmoNavi(params, lr=1e-2, emo_law="settle")
    train((optimizer, optimizer), params, range(2))
    before = held(params)
    optimizer.eval()
    assert_identical(held(params), before)
    assert all(AVERAGE not in optimizer.state[param] for param in params)


def test_a_step_that_is_left_out_enters_no_average() -> None:
    params = parameters()
    made = adamw(params)
    train(made, params, range(3))
    average = [made[0].state[param][AVERAGE].clone() for param in params]
    give_gradients(params, 3)
    made[1].observe(float("nan"))
    made[0].step()
    assert_identical([made[0].state[param][AVERAGE] for param in params], average)


def test_steps_in_backward_have_the_average_of_ordinary_ones() -> None:
    results = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer, _ = emonavi(model.parameters(), step_in_backward=in_backward, guard=False)
        for step in range(5):
            loss = model(torch.full((2, 4), 0.1 * step)).square().mean()
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.eval()
        results.append(held(list(model.parameters())))
    assert_identical(*results)


def test_detaching_while_the_average_is_shown_loses_no_weights() -> None:
    params = parameters()
    made = adamw(params)
    (*_, weights) = train(made, params, range(5))
    made[1].eval()
    made[1].detach()
    assert_identical(held(params), weights)
    assert all(AVERAGE not in state for state in made[0].state.values())


def test_state_follows_parameters_to_another_dtype_with_an_average_beside_it() -> None:
    params = parameters()
    made = emonavi(params)
    train(made, params, range(3))
    for param in params:
        param.data, param.grad = param.data.bfloat16(), None
    train(made, params, range(3, 5))
    assert {state["exp_avg"].dtype for state in made[0].state.values()} == {torch.bfloat16}
    assert {state[AVERAGE].dtype for state in made[0].state.values()} == {torch.float32}


def test_optimizers_of_offloaded_copies_keep_no_average() -> None:
    one = emo_hf.sharing_one_emotion(emo_hf.EmoNavi)
    with pytest.raises(ValueError, match="leave average_weights out"):
        one(parameters(), lr=1e-3, emo_law="settle", average_weights=True, guard=False)


def test_detaching_takes_the_methods_away_and_a_copy_has_none() -> None:
    params = parameters()
    optimizer, handle = adamw(params)
    assert callable(optimizer.eval)
    assert not hasattr(copy.deepcopy(optimizer), "eval")
    handle.detach()
    assert not hasattr(optimizer, "eval")


def test_an_optimizer_that_averages_by_itself_is_refused() -> None:
    class Averaging(torch.optim.SGD):
        def eval(self) -> None: ...

    with pytest.raises(ValueError, match="Averaging keeps an average of the weights of its own"):
        emo_hf.attach(Averaging(parameters(), lr=0.1), law="settle", average_weights=True)


def test_a_framework_that_steps_part_by_part_is_refused() -> None:
    params = parameters()
    optimizer, _ = emonavi(params)
    give_gradients(params, 0)
    optimizer.tap_loss(torch.tensor(1.0), in_parts=True)
    with pytest.raises(RuntimeError, match="not for DeepSpeed"):
        optimizer.step()
