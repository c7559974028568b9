"""An average of the weights beside them (`average_weights`): what it is, that it comes and goes, that it is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import emo_hf
from emo_hf.optim.average import share_of_weights
from emo_hf.optim.state_keys import AVERAGE
from tests.emo_cases import assert_identical, assert_refused, give_gradients, held, parameters, through_a_file

Made = tuple[torch.optim.Optimizer, Any]
"""An optimizer, and what is shown its losses."""


def emonavi(params: Any, **options: Any) -> Made:
    options = {"lr": 1e-2, "emo_law": "settle", "average_weights": True, **options}
    optimizer = emo_hf.EmoNavi(params, **options)
    return optimizer, optimizer


def stateless(params: Any) -> Made:
    """One whose rule keeps no state."""
    optimizer = emo_hf.EmoFact(params, version="v3.6", lr=1e-2, emo_law="settle", average_weights=True)
    return optimizer, optimizer


def adamw(params: Any, law: str = "settle", average_weights: bool = True) -> Made:
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    return optimizer, emo_hf.attach(optimizer, law, average_weights=average_weights)


each = pytest.mark.parametrize("make", [emonavi, stateless, adamw])


def train(made: Made, params: list[nn.Parameter], steps: range) -> list[list[torch.Tensor]]:
    """The weights after each step."""
    weights = []
    for step in steps:
        give_gradients(params, step)
        made[1].observe(2.0 * 0.98**step)
        made[0].step()
        weights.append(held(params))
    return weights


def trained(
    make: Callable[..., Made], steps: int, dtype: torch.dtype = torch.float32
) -> tuple[Made, list[nn.Parameter]]:
    params = [nn.Parameter(param.detach().to(dtype)) for param in parameters()]
    made = make(params)
    train(made, params, range(steps))
    return made, params


def averages_of(made: Made, params: list[nn.Parameter]) -> list[torch.Tensor]:
    return [made[0].state[param][AVERAGE].clone() for param in params]


@each
def test_it_is_the_average_of_the_weights_after_each_step_with_late_ones_weighing_most(
    make: Callable[..., Made],
) -> None:
    _, plain = trained(lambda params: make(params), 40)  # without a look in between
    params = parameters()
    made = make(params)
    weights = []
    for step in range(40):
        weights += train(made, params, range(step, step + 1))
        made[1].eval()
        made[1].train()
    assert_identical(weights[-1], held(plain))
    wanted = weights[0]
    for k, after_step in enumerate(weights[1:], 2):
        wanted = [old + 8 / (k + 7) * (new - old) for old, new in zip(wanted, after_step, strict=True)]
    made[1].eval()
    made[1].eval()
    torch.testing.assert_close(held(params), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) before the forward pass"):
        train(made, params, range(1))
    made[1].train()
    made[1].train()
    assert_identical(held(params), weights[-1])


def test_samples_are_few_and_none_is_far_from_the_next() -> None:
    shares = [share_of_weights(age) for age in range(1, 1001)]
    assert sum(share > 0 for share in shares) < 200  # a fifth of the steps: an eighth of a bare step on average
    assert shares[:63].count(0.0) == 0
    kept, ages = 0.0, []
    for age, share in enumerate(shares, 1):  # the age of what is in the average
        kept = kept + share * (age - kept)
        ages.append(kept / age)
    assert all(0.86 < age < 0.92 for age in ages[200:])


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shown", [False, True], ids=["weights", "average"])
def test_what_was_saved_with_either_in_the_parameters_goes_on_to_the_last_bit(
    make: Callable[..., Made], dtype: torch.dtype, shown: bool
) -> None:
    made, params = trained(make, 20, dtype)
    averages, weights = averages_of(made, params), held(params)
    assert {average.dtype for average in averages} == {torch.float32}
    assert all(torch.equal(average, average.to(dtype).float()) for average in averages) is (dtype is torch.float32)
    if shown:
        made[1].eval()
        assert_identical(held(params), [average.to(dtype) for average in averages])
    again = [nn.Parameter(param) for param in held(params)]
    other = make(again)
    other[0].load_state_dict(through_a_file(made[0].state_dict()))
    for one, its in ((made, params), (other, again)):
        one[1].train()
        assert_identical(averages_of(one, its), averages)
        assert_identical(held(its), weights)
        train(one, its, range(20, 26))
        one[1].eval()
    assert_identical(held(again), held(params))


@pytest.mark.parametrize("kept", ["rounded", "cpu"])
def test_it_can_be_kept_in_fewer_bits_or_in_main_memory(kept: str) -> None:
    runs = [trained(lambda p, how=how: emonavi(p, average_weights=how), 60, torch.bfloat16) for how in (True, kept)]
    assert_identical(*(held(params) for _, params in runs))  # the weights go on as they do
    exact, averages = (averages_of(*of_one) for of_one in runs)
    assert {average.dtype for average in averages} == {torch.bfloat16 if kept == "rounded" else torch.float32}
    torch.testing.assert_close([average.float() for average in averages], exact, rtol=0.02, atol=0.01)


def test_a_step_that_is_left_out_enters_no_average() -> None:
    made, params = trained(adamw, 3)
    averages = averages_of(made, params)
    give_gradients(params, 3)
    made[1].observe(float("nan"))
    made[0].step()
    assert_identical(averages_of(made, params), averages)


def test_detaching_takes_its_methods_away_and_loses_no_weights_and_a_copy_has_neither() -> None:
    (optimizer, handle), params = trained(adamw, 5)
    weights = held(params)
    assert callable(optimizer.eval)
    assert not hasattr(copy.deepcopy(optimizer), "eval")
    handle.eval()
    handle.detach()
    assert not hasattr(optimizer, "eval")
    assert_identical(held(params), weights)
    assert all(AVERAGE not in state for state in optimizer.state.values())


def test_state_follows_parameters_to_another_dtype_with_an_average_beside_it() -> None:
    made, params = trained(emonavi, 3)
    for param in params:
        param.data, param.grad = param.data.bfloat16(), None
    train(made, params, range(3, 5))
    assert {state["exp_avg"].dtype for state in made[0].state.values()} == {torch.bfloat16}
    assert {average.dtype for average in averages_of(made, params)} == {torch.float32}


class Averaging(torch.optim.SGD):
    def eval(self) -> None: ...


def step_by_parts(optimizer: Any) -> None:
    """As DeepSpeed does it."""
    give_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.tap_loss(torch.tensor(1.0), in_parts=True)
    optimizer.step()


def test_what_it_does_not_go_with_is_refused_and_one_that_was_on_by_default_gives_way_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match="Averaging, which keeps an average of the weights of its own"):
        emo_hf.attach(Averaging(parameters(), lr=0.1), law="settle", average_weights=True)
    with pytest.raises(ValueError, match="DeepSpeed does not go with average_weights=True"):
        step_by_parts(emonavi(parameters())[0])
    optimizer = emo_hf.EmoNavi(parameters(), lr=1e-2, emo_law="settle")
    assert optimizer.keeps_average
    step_by_parts(optimizer)
    assert not optimizer.keeps_average
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["DeepSpeed"]


@pytest.mark.parametrize(("law", "kept"), [("none", True), ("v3.1", True), ("v3.1", False)])
def test_any_law_goes_with_it_and_none_needs_no_loss_and_there_is_none_where_it_is_not_asked_for(
    law: str, kept: bool, recwarn: pytest.WarningsRecorder
) -> None:
    params = parameters()
    optimizer, handle = adamw(params, law, average_weights=kept)
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()
    weights = held(params)
    if kept:
        optimizer.eval()
    handle.eval()
    assert handle.shows_average is kept
    assert any(map(torch.equal, held(params), weights)) is not kept
    assert all((AVERAGE in optimizer.state[param]) is kept for param in params)
    assert len(recwarn) == (law != "none")


DAMAGES: list[tuple[Callable[[torch.Tensor], Any], str]] = [
    (lambda average: average[..., :1], "has the shape"),
    (lambda average: average * float("nan"), "not finite"),
    (lambda average: average.long(), "dense tensor of floating point"),
    (lambda average: "average", "lacks 'emo_average'"),
]


@pytest.mark.parametrize("make", [emonavi, adamw])
def test_a_damaged_average_is_refused_before_anything_changes(make: Callable[..., Made]) -> None:
    (optimizer, _), _ = trained(make, 3)
    for damage, said in DAMAGES:
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0][AVERAGE] = damage(state["state"][0][AVERAGE])
        assert_refused(optimizer, state, said)


@pytest.mark.parametrize("make", [emonavi, adamw])
def test_a_state_with_the_average_shown_is_refused_by_an_optimizer_without_one(make: Callable[..., Made]) -> None:
    made, _ = trained(make, 3)
    weights = copy.deepcopy(made[0].state_dict())
    made[1].eval()
    other, _ = make(parameters(), average_weights=False)
    with pytest.raises(ValueError, match="make the optimizer with average_weights=True"):
        other.load_state_dict(made[0].state_dict())
    other.load_state_dict(weights)  # with the weights in the parameters the average can be left behind
    assert all(AVERAGE not in state for state in other.state.values())


def test_it_begins_anew_where_the_data_have_changed_or_the_rate_was_lowered() -> None:
    made, params = trained(adamw, 10)
    made[1].restart_average()
    (weights,) = train(made, params, range(10, 11))
    made[1].eval()
    assert_identical(held(params), weights)
    made[1].train()
    for step in range(11, 60):
        give_gradients(params, step)
        made[1].observe(2.0 if step < 20 else 1e3)
        made[0].step()
        if made[1].decision.note is not None and made[1].decision.note.kind == "lowered":
            break
    weights = held(params)
    made[1].eval()
    assert_identical(held(params), weights)


def test_finishing_leaves_the_average_for_good_and_training_begins_another() -> None:
    made, params = trained(emonavi, 8)
    made[1].eval()
    average = held(params)
    made[1].finish_average()
    made[1].train()
    assert_identical(held(params), average)
    (weights,) = train(made, params, range(8, 9))
    made[1].eval()
    assert_identical(held(params), weights)


def test_within_a_block_the_average_is_shown_and_afterwards_whatever_was_before() -> None:
    made, params = trained(adamw, 4)
    weights = held(params)
    with made[1].average_shown(), made[1].average_shown():
        assert made[1].shows_average
    assert_identical(held(params), weights)
    with pytest.raises(ZeroDivisionError), made[1].average_shown():
        raise ZeroDivisionError
    assert_identical(held(params), weights)
    made[1].eval()
    with made[1].average_shown():
        pass
    assert made[1].shows_average
