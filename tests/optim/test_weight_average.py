"""An average of the weights beside them (`average_weights`): what it is, that it comes and goes, that it is saved."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._python_dispatch
from torch import nn

import emo_hf
from emo_hf.optim.average import share_of_weights
from emo_hf.optim.average_tensors import rounded_at_random
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
    optimizer = emo_hf.EmoNavi(params, lr=1e-2)
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
    with pytest.raises(ValueError, match="does not go with average_weights=True"):
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

    with pytest.raises(ValueError, match="Averaging, which keeps an average of the weights of its own"):
        emo_hf.attach(Averaging(parameters(), lr=0.1), law="settle", average_weights=True)


def test_a_framework_that_steps_part_by_part_is_refused() -> None:
    params = parameters()
    optimizer, _ = emonavi(params)
    give_gradients(params, 0)
    optimizer.tap_loss(torch.tensor(1.0), in_parts=True)
    with pytest.raises(ValueError, match="DeepSpeed does not go with average_weights=True"):
        optimizer.step()


def test_what_was_on_by_default_gives_way_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    params = parameters()
    optimizer = emo_hf.EmoNavi(params, lr=1e-2, emo_law="settle")
    assert optimizer.keeps_average
    give_gradients(params, 0)
    optimizer.tap_loss(torch.tensor(1.0), in_parts=True)
    optimizer.step()
    assert not optimizer.keeps_average
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["DeepSpeed"]


@pytest.mark.parametrize("law", ["none", "v3.1"])
def test_any_law_goes_with_it_and_none_needs_no_loss(law: str, recwarn: pytest.WarningsRecorder) -> None:
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    handle = emo_hf.attach(optimizer, law=law, average_weights=True)
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()
    handle.eval()
    handle.train()
    assert len(recwarn) == (law != "none")


class Interrupt(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises after the n-th tensor operation."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shows", [True, False])
def test_an_interrupt_after_any_operation_leaves_all_parameters_the_average_or_none(
    dtype: torch.dtype, shows: bool
) -> None:
    params = [nn.Parameter(param.detach().to(dtype)) for param in parameters()]
    made = emonavi(params)
    train(made, params, range(5))
    states = [held(params)]
    made[1].eval()
    states.append(held(params))
    if shows:
        made[1].train()
    interrupted = 0
    for after in range(1, 1000):
        try:
            with Interrupt(after):
                made[1].eval() if shows else made[1].train()
        except KeyboardInterrupt:
            interrupted += 1
        found = [all(map(torch.equal, params, state)) for state in states]
        assert sorted(found) == [False, True]
        assert made[1].shows_average is found[1]
        made[1].train()
        assert_identical(held(params), states[0])
        made[1].eval()
        assert_identical(held(params), states[1])
        if shows:
            made[1].train()
        if interrupted < after:
            break
    assert interrupted > 2 * len(params)


def test_an_exchange_that_was_cut_off_twice_is_finished_by_the_next_call() -> None:
    params = parameters()
    made = emonavi(params)
    train(made, params, range(5))
    weights = held(params)
    made[1].eval()
    average = held(params)
    made[1].train()

    class Twice(Interrupt):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.left = max(self.left, 1)
            return super().__torch_dispatch__(func, types, args, kwargs)

    for show, wanted in ((True, average), (False, weights)):
        with pytest.raises(KeyboardInterrupt), Twice(4):
            made[1].eval() if show else made[1].train()
        made[1].eval() if show else made[1].train()
        assert_identical(held(params), wanted)


def test_a_bfloat16_average_is_not_rounded_by_being_shown() -> None:
    params = [nn.Parameter(param.detach().bfloat16()) for param in parameters()]
    made = emonavi(params)
    train(made, params, range(20))
    averages, weights = [made[0].state[param][AVERAGE].clone() for param in params], held(params)
    assert any(not torch.equal(average, average.bfloat16().float()) for average in averages)
    made[1].eval()
    saved = stored(made[0].state_dict())
    made[1].train()
    assert_identical([made[0].state[param][AVERAGE] for param in params], averages)
    assert_identical(held(params), weights)
    again = [nn.Parameter(param) for param in held(params)]
    other = emonavi(again)
    made[1].eval()
    for param, shown in zip(again, params, strict=True):
        param.data.copy_(shown)
    other[0].load_state_dict(saved)
    other[1].train()
    assert_identical([other[0].state[param][AVERAGE] for param in again], averages)
    assert_identical(held(again), weights)


@pytest.mark.parametrize("kept", ["rounded", "cpu"])
def test_it_can_be_kept_in_fewer_bits_or_in_main_memory(kept: str) -> None:
    results, averages = [], []
    for how in (True, kept):
        params = [nn.Parameter(param.detach().bfloat16()) for param in parameters()]
        optimizer = emo_hf.EmoNavi(params, lr=1e-2, average_weights=how)
        train((optimizer, optimizer), params, range(60))
        averages.append([optimizer.state[param][AVERAGE].clone() for param in params])
        results.append(held(params))
    assert_identical(*results)  # the weights go on as they do
    assert {average.dtype for average in averages[1]} == {torch.bfloat16 if kept == "rounded" else torch.float32}
    for exact, other in zip(*averages, strict=True):
        torch.testing.assert_close(other.float(), exact, rtol=0.02, atol=0.01)


def test_rounding_at_random_is_right_on_average_and_the_same_for_the_same_seed() -> None:
    exact = torch.full((20_000,), 1.001)
    rounded = rounded_at_random(exact, torch.bfloat16, seed=3)
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert abs(float(rounded.float().mean()) - 1.001) < 2e-4
    assert torch.equal(rounded, rounded_at_random(exact, torch.bfloat16, seed=3))
    assert not torch.equal(rounded, rounded_at_random(exact, torch.bfloat16, seed=4))


@each
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda average: average[..., :1], "has the shape"),
        (lambda average: average * float("nan"), "not finite"),
        (lambda average: average.long(), "no tensor of floating point"),
        (lambda average: "average", "no tensor of floating point"),
    ],
    ids=["shape", "nan", "whole numbers", "text"],
)
def test_a_damaged_average_is_refused_before_anything_changes(
    make: Callable[..., Made], damage: Callable[..., Any], said: str
) -> None:
    params = parameters()
    made = make(params)
    train(made, params, range(3))
    state = made[0].state_dict()
    state = {**state, "state": {key: dict(value) for key, value in state["state"].items()}}
    first = next(key for key, value in state["state"].items() if value[AVERAGE].dim() == 2)
    state["state"][first][AVERAGE] = damage(state["state"][first][AVERAGE])
    before = copy.deepcopy(made[0].state_dict())
    with pytest.raises(ValueError, match=said):
        made[0].load_state_dict(state)
    assert_identical(made[0].state_dict()["state"], before["state"])


def without_average(params: Any) -> list[Made]:
    navi, adamw_ = emo_hf.EmoNavi(params, lr=1e-2, emo_law="settle", average_weights=False), torch.optim.AdamW(params)
    return [(navi, navi), (adamw_, emo_hf.attach(adamw_, law="settle", average_weights=False))]


@pytest.mark.parametrize("which", [0, 1], ids=["emonavi", "adamw"])
def test_a_state_with_the_average_shown_is_refused_by_an_optimizer_without_one(which: int) -> None:
    params = parameters()
    made = [emonavi, adamw][which](params)
    train(made, params, range(3))
    weights = made[0].state_dict()
    made[1].eval()
    other = without_average(parameters())[which]
    with pytest.raises(ValueError, match="make the optimizer with average_weights=True"):
        other[0].load_state_dict(made[0].state_dict())
    other[0].load_state_dict(weights)  # with the weights in the parameters the average can be left behind
    assert all(AVERAGE not in state for state in other[0].state.values())


def test_it_begins_anew_where_the_data_have_changed_or_the_rate_was_lowered() -> None:
    params = parameters()
    made = adamw(params)
    train(made, params, range(10))
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


def test_samples_are_few_and_none_is_far_from_the_next() -> None:
    shares = [share_of_weights(age) for age in range(1, 1001)]
    assert sum(share > 0 for share in shares) < 330  # a third of the steps: a seventh of a bare step on average
    assert shares[:127].count(0.0) == 0
    kept, ages = 0.0, []
    for age, share in enumerate(shares, 1):  # the age of what is in the average
        kept = kept + share * (age - kept)
        ages.append(kept / age)
    assert all(0.86 < age < 0.92 for age in ages[200:])


def test_finishing_leaves_the_average_for_good_and_training_begins_another() -> None:
    params = parameters()
    made = emonavi(params)
    train(made, params, range(8))
    made[1].eval()
    average = held(params)
    made[1].finish_average()
    made[1].train()
    assert_identical(held(params), average)
    (weights,) = train(made, params, range(8, 9))
    made[1].eval()
    assert_identical(held(params), weights)


def test_within_a_block_the_average_is_shown_and_afterwards_whatever_was_before() -> None:
    params = parameters()
    made = adamw(params)
    train(made, params, range(4))
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
