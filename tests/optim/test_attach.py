"""An emotion attached to an optimizer of others: what it scales, what it gives back, and what it leaves behind."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import emo_hf
from emo_hf import Attachment, EmoNavi, attach
from emo_hf.laws import Note, law_names, make_law
from tests.emo_cases import assert_identical, give_gradients, losses, parameters, snapshot
from tests.ranks import run_job

SHAPES = [(64, 64), (64, 8), (8, 64)]  # matrices, for Muon; the first large enough to be kept in 8 bits
STEPS = 24
Groups = list[dict[str, Any]]
Make = Callable[[Groups], Optimizer]


def muon(groups: Groups) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    return torch.optim.Muon(groups)


def hf_adafactor(groups: Groups) -> Optimizer:
    optimization = pytest.importorskip("transformers.optimization")
    return optimization.Adafactor(groups, scale_parameter=False, relative_step=False)


def adamw_of_rate_tensors(groups: Groups) -> Optimizer:
    # A tensor for the rate is what capturable=True needs on a GPU, where a graph reads it anew.
    return torch.optim.AdamW([{**group, "lr": torch.tensor(group["lr"])} for group in groups], foreach=False)


def bitsandbytes(groups: Groups) -> Optimizer:
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit(groups, min_8bit_size=256)


def torchao(groups: Groups) -> Optimizer:
    return pytest.importorskip("torchao.optim").AdamW8bit(groups)


def schedule_free(groups: Groups) -> Optimizer:
    optimizer = pytest.importorskip("schedulefree").AdamWScheduleFree(groups, warmup_steps=5)
    optimizer.train()
    return optimizer


LOW_RANK = {"rank": 2, "update_proj_gap": 10, "scale": 1.0, "proj_type": "std"}


def galore(groups: Groups) -> Optimizer:
    return pytest.importorskip("galore_torch").GaLoreAdamW([{**group, **LOW_RANK} for group in groups])


def apollo(groups: Groups) -> Optimizer:
    own = {**LOW_RANK, "proj": "random", "scale_type": "channel"}
    return pytest.importorskip("apollo_torch").APOLLOAdamW([{**group, **own} for group in groups])


MAKERS: dict[str, Make] = {
    "adamw": torch.optim.AdamW,
    "adamw fused": lambda groups: torch.optim.AdamW(groups, fused=True),
    "adamw of rate tensors": adamw_of_rate_tensors,
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.5),
    "adafactor": torch.optim.Adafactor,
    "adafactor of transformers": hf_adafactor,
    "muon": muon,
    "bitsandbytes": bitsandbytes,
    "torchao": torchao,
    "schedule-free": schedule_free,
    "galore": galore,
    "apollo": apollo,
}

each_optimizer = pytest.mark.parametrize("name", MAKERS)


def build(name: str = "adamw") -> Optimizer:
    """An optimizer over two groups with rates of their own, the second with a name."""
    params = parameters(SHAPES)
    torch.manual_seed(0)  # some project at random
    return MAKERS[name]([{"params": params[:2], "lr": 0.01}, {"params": params[2:], "lr": 0.002, "name": "rest"}])


def all_params(optimizer: Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def run(optimizer: Optimizer, handle: Attachment | None, steps: range, **step: Any) -> None:
    for t in steps:
        give_gradients(all_params(optimizer), t)
        if handle is not None:
            handle.observe(losses(t + 1)[t])
        optimizer.step(**step)


def factors(count: int, law: str = "v3.1") -> list[float]:
    made = make_law(law, "v3.1", {})
    return [made.feel(loss).coefficient for loss in losses(count)]


def scaled_by_hand(optimizer: Optimizer, values: list[float]) -> None:
    """What a user without `attach` would write."""
    for t, value in enumerate(values):
        give_gradients(all_params(optimizer), t)
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * value
        optimizer.step()
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr


def weights(optimizer: Optimizer) -> list[torch.Tensor]:
    return [param.detach().clone() for param in all_params(optimizer)]


# What it scales


@each_optimizer
def test_a_step_is_that_of_rates_multiplied_by_hand(name: str) -> None:
    optimizer, twin = build(name), build(name)
    run(optimizer, attach(optimizer), range(STEPS))
    scaled_by_hand(twin, factors(STEPS))
    assert {0.0 < c < 1.0 for c in factors(STEPS)} == {True, False}, "some steps are slowed down, some are not"
    assert_identical(weights(optimizer), weights(twin))


@each_optimizer
def test_under_the_law_none_it_is_the_optimizer_itself_to_the_last_bit(name: str) -> None:
    optimizer, twin = build(name), build(name)
    run(optimizer, attach(optimizer, "none"), range(STEPS))
    run(twin, None, range(STEPS))
    assert_identical(weights(optimizer), weights(twin))


@pytest.mark.parametrize("law", law_names())
def test_every_law_can_be_attached(law: str) -> None:
    optimizer, twin = build(), build()
    handle = attach(optimizer, law)
    run(optimizer, handle, range(STEPS))
    scaled_by_hand(twin, factors(STEPS, law))
    assert handle.emotion.law == law
    assert handle.emotion.coefficient == factors(STEPS, law)[-1]
    assert_identical(weights(optimizer), weights(twin))


def test_options_of_a_law_reach_it() -> None:
    assert attach(build(), "v3.9", stopcoef=0.5, notify=False)._engine.law.stopcoef == 0.5


@pytest.mark.parametrize("name", ["adamw", "adamw of rate tensors"])
def test_the_rate_of_v3_9_has_a_floor_where_the_users_is_not_zero(name: str) -> None:
    optimizer = build(name)
    handle = attach(optimizer, "v3.9")
    for group, lr in zip(optimizer.param_groups, (1e-6, 0.0), strict=True):
        group["lr"] = torch.tensor(lr) if isinstance(group["lr"], torch.Tensor) else lr
    before = weights(optimizer)
    run(optimizer, handle, range(1))
    assert handle.effective_lr == pytest.approx({"group_0": 1e-8, "rest": 0.0})
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(optimizer), strict=True)]
    assert moved == [True, True, False]


@each_optimizer
def test_after_each_step_the_rates_are_the_very_objects_that_they_were(name: str) -> None:
    optimizer = build(name)
    handle = attach(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    values = [float(lr) for lr in rates]
    for t in range(STEPS):
        run(optimizer, handle, range(t, t + 1))
        assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, rates, strict=True))
        assert [float(lr) for lr in rates] == values
        factor = handle.emotion.coefficient
        assert list(handle.effective_lr.values()) == pytest.approx([value * factor for value in values])


class Readings(TorchDispatchMode):
    """Counts how often the value of a tensor is asked for, which on a GPU waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("law", ["v3.1", "v3.9"])
def test_rates_that_are_tensors_are_scaled_without_being_read(law: str) -> None:
    counts = []
    for attached in (False, True):
        optimizer = build("adamw of rate tensors")
        handle = attach(optimizer, law) if attached else None
        run(optimizer, handle, range(1))
        with Readings() as readings:
            run(optimizer, handle, range(1, 4))
        counts.append(readings.count)
    assert counts[1] == counts[0]


def test_an_optimizer_without_rates_in_its_groups_is_felt_for_but_not_scaled(caplog: pytest.LogCaptureFixture) -> None:
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    optimizer = adafactor(parameters(SHAPES))
    twin = adafactor(parameters(SHAPES))
    handle = attach(optimizer)
    assert "scales nothing there" in caplog.text
    run(optimizer, handle, range(STEPS))
    run(twin, None, range(STEPS))
    assert_identical(weights(optimizer), weights(twin))
    assert optimizer.param_groups[0]["lr"] is None
    assert handle.effective_lr == {}
    assert handle.metrics()["emo/observations"] == STEPS
    with pytest.warns(RuntimeWarning, match="without a loss"):
        optimizer.step()


def test_a_scale_that_is_a_learning_rate_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    attach(torch.optim.AdamW(parameters(), lr=5e-5), "v3.9")
    assert "takes the optimizer's as a scale around 1. With lr=5e-05" in caplog.text
    caplog.clear()
    warm = torch.optim.AdamW(parameters(), lr=0.1)
    lr_scheduler.LambdaLR(warm, lambda step: step / 10)  # warm-up begins at 0
    attach(warm, "v3.9")
    attach(torch.optim.AdamW(parameters(), lr=5e-5), "v3.1")
    assert not caplog.text


def test_a_nan_loss_leaves_the_step_as_it_is() -> None:
    optimizer, twin = build(), build()
    handle = attach(optimizer)
    values = losses(10)
    values[4] = math.nan
    law = make_law("v3.1", "v3.1", {})
    for t, value in enumerate(values):
        give_gradients(all_params(optimizer), t)
        handle.observe(value)
        optimizer.step()
    scaled_by_hand(twin, [law.feel(value).coefficient for value in values])
    assert (handle.emotion.observations, handle.emotion.skipped) == (9, 1)
    assert_identical(weights(optimizer), weights(twin))


def test_a_step_without_a_loss_is_the_optimizers_own_and_warns_once_at_the_callers_line() -> None:
    optimizer, twin = build(), build()
    attach(optimizer)
    with pytest.warns(RuntimeWarning, match=r"AdamW.step\(\) was called without a loss") as caught:
        run(optimizer, None, range(3))
    run(twin, None, range(3))
    assert [warning.filename for warning in caught] == [__file__]
    assert_identical(weights(optimizer), weights(twin))


def test_two_optimizers_have_an_emotion_each() -> None:
    one, other = build(), build("sgd")
    first, second = attach(one), attach(other, "v3.0")
    run(one, first, range(5))
    assert first.emotion.observations == 5
    assert second.emotion.observations == 0
    run(other, second, range(3))
    assert (first.emotion.observations, second.emotion.observations) == (5, 3)


def test_the_handle_names_groups_and_logs_plain_numbers() -> None:
    optimizer = build("adamw of rate tensors")
    handle = attach(optimizer)
    assert handle.effective_lr == pytest.approx({"group_0": 0.01, "rest": 0.002})
    run(optimizer, handle, range(8))
    values = handle.metrics()
    assert values["emo/effective_lr/rest"] == pytest.approx(0.002 * handle.emotion.coefficient)
    assert values["emo/coefficient_min"] < values["emo/coefficient_max"]
    assert all(type(value) in (int, float) for value in values.values())
    assert handle.emo_sync == "global"
    assert attach(build(), sync="local").emo_sync == "local"


# Closures


def regression(seed: int = 0) -> tuple[nn.Linear, Callable[[], torch.Tensor]]:
    torch.manual_seed(seed)
    model = nn.Linear(4, 2)
    inputs = torch.randn(16, 4)
    return model, lambda: (model(inputs) - inputs[:, :2] - 1.0).square().mean()


def descend(by: str) -> tuple[Attachment, list[torch.Tensor]]:
    """A small real training, with a closure or by hand."""
    model, loss_of = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    handle = attach(optimizer, "v3.6")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    for _ in range(12):
        if by == "observe":
            handle.observe(closure())
            optimizer.step()
        elif by == "position":
            assert isinstance(optimizer.step(closure), torch.Tensor)
        else:
            optimizer.step(closure=closure)
    return handle, weights(optimizer)


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_the_loss_of_a_closure_is_felt_in_the_step_that_it_belongs_to(by: str) -> None:
    handle, closing = descend(by)
    assert (handle.emotion.observations, handle.emotion.skipped) == (12, 0)
    assert handle.param_groups[0]["lr"] == 0.3
    assert_identical(closing, descend("observe")[1])


def test_a_loss_that_the_closure_observes_itself_wins() -> None:
    optimizer = build()
    handle = attach(optimizer)

    def closure() -> float:
        give_gradients(all_params(optimizer), 0)
        handle.observe(7.0)
        return 1.0

    optimizer.step(closure)
    assert handle.emotion.short == 7.0


class TwiceADescent(torch.optim.SGD):
    """Sharpness-aware: evaluates the loss again at weights that it has moved, as SAM does."""

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        for param in all_params(self):
            param.add_(param.grad, alpha=0.05)
        moved_by = [0.05 * param.grad for param in all_params(self)]
        with torch.enable_grad():
            closure()
        for param, by in zip(all_params(self), moved_by, strict=True):
            param.sub_(by)
        self.seen = [group["lr"] for group in self.param_groups]
        super().step()
        return loss


@pytest.mark.parametrize("observes", [False, True])
def test_a_closure_that_is_evaluated_twice_is_one_loss(observes: bool) -> None:
    model, loss_of = regression()
    optimizer = TwiceADescent(model.parameters(), lr=0.1)
    handle = attach(optimizer)
    handle.observe(10.0)
    handle._engine.decide(handle._facts)  # so that what follows is a sudden fall, and the factor far from 1
    values = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        values.append(loss.item())
        if observes:
            handle.observe(loss)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert optimizer.seen == [0.1 * handle.emotion.coefficient]
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert (handle.emotion.observations, handle.emotion.skipped) == (4, 0)
    short = 10.0
    for value in values[::2]:
        short = 0.3 * value + 0.7 * short
    assert handle.emotion.short == pytest.approx(short)


class DecaysAfterwards(torch.optim.SGD):
    """Calls the step() below, and reads its rate once more."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.seen = [group["lr"] for group in self.param_groups]
        return loss


@pytest.mark.parametrize("closing", [False, True])
def test_a_step_that_calls_the_one_of_its_base_class_is_one_step(closing: bool) -> None:
    torch.optim.SGD(parameters(), lr=1.0)  # from now on torch runs the hooks for the inner call as well
    optimizer = DecaysAfterwards(parameters(), lr=1.0)
    handle = attach(optimizer)
    for loss in (10.0, 5.0, 5.0):
        give_gradients(all_params(optimizer), 0)
        if closing:
            optimizer.step(lambda loss=loss: loss)
        else:
            handle.observe(loss)
            optimizer.step()
        assert optimizer.seen == [handle.emotion.coefficient]
    assert handle.emotion.observations == 3
    assert handle.emotion.coefficient != 1.0


# Schedulers


def sequential(optimizer: Optimizer) -> Any:
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4)
    return lr_scheduler.SequentialLR(optimizer, [warmup, lr_scheduler.CosineAnnealingLR(optimizer, 12)], [4])


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step)),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=STEPS),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "sequential": sequential,
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.StepLR(optimizer, 5)]
    ),
}


def rates_of_a_run(name: str, make: Callable[[Optimizer], Any], attached: str) -> list[list[float]]:
    optimizer = build(name)
    handle = attach(optimizer) if attached == "before" else None
    scheduler = make(optimizer)
    if attached == "after":
        handle = attach(optimizer)
    rates = []
    for t in range(STEPS - 1):
        run(optimizer, handle, range(t, t + 1))
        scheduler.step(*[losses(t + 1)[t]] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
    if handle is not None:
        assert handle.emotion.observations == STEPS - 1
    return rates


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("attached", ["before", "after"])
@pytest.mark.parametrize("name", ["sgd", "adamw of rate tensors"])
def test_a_scheduler_sees_and_sets_the_users_rate(name: str, attached: str, scheduler: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that step() was overridden, or never called
        warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)
        rates = rates_of_a_run(name, SCHEDULERS[scheduler], attached)
        assert rates == rates_of_a_run(name, SCHEDULERS[scheduler], "never")
    assert rates[0] != rates[-1]


# Steps that raise


@contextmanager
def a_gradient_that_the_step_refuses(optimizer: Optimizer) -> Iterator[None]:
    param = all_params(optimizer)[-1]
    give_gradients(all_params(optimizer), 0)
    param.grad = param.grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        yield
    param.grad = None


@pytest.mark.parametrize("name", ["adamw", "adamw of rate tensors", "adafactor"])
def test_a_step_that_raises_gives_the_rates_back_at_once(name: str) -> None:
    optimizer = build(name)
    handle = attach(optimizer)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    rates = [group["lr"] for group in optimizer.param_groups]
    run(optimizer, handle, range(6))
    with a_gradient_that_the_step_refuses(optimizer):
        handle.observe(20.0)
        optimizer.step()
    assert handle.emotion.coefficient != 1.0
    assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, rates, strict=True))
    scheduler.step()
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.005, 0.001])
    run(optimizer, handle, range(6, 8))
    assert handle.emotion.observations == 9


# States


def reloaded(state: dict[str, Any], *, weights_only: bool = True) -> dict[str, Any]:
    """A state that went through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=weights_only)
    return loaded


@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
@each_optimizer
def test_a_run_goes_on_from_a_state_dict_to_the_last_bit(name: str, order: str) -> None:
    optimizer = build(name)
    handle = attach(optimizer)
    run(optimizer, handle, range(40))
    torch.manual_seed(1)
    plain = name not in ("galore", "apollo")  # they keep objects of their own in the state
    state = reloaded(optimizer.state_dict(), weights_only=plain)
    twin = build(name)
    for param, other in zip(all_params(twin), all_params(optimizer), strict=True):
        param.data.copy_(other.data)
    if order == "attach, load":
        again = attach(twin)
        twin.load_state_dict(state)
    else:
        twin.load_state_dict(state)
        again = attach(twin)
    assert again.emotion == handle.emotion
    for one, another in ((optimizer, handle), (twin, again)):
        torch.manual_seed(1)
        run(one, another, range(40, 50))
    assert_identical(weights(twin), weights(optimizer))
    assert again.emotion == handle.emotion
    assert again.metrics() == handle.metrics()


def test_a_state_dict_is_that_of_the_optimizer_with_an_emotion_in_each_group() -> None:
    optimizer, twin = build(), build()
    handle = attach(optimizer, "none")
    run(optimizer, handle, range(3))
    run(twin, None, range(3))
    state = optimizer.state_dict()
    emotions = [group.pop("emotion") for group in state["param_groups"]]
    assert_identical(state, twin.state_dict())
    assert [saved["observations"] for saved in emotions] == [3, 3]
    assert all(group["emotion"] is None for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["adamw", "bitsandbytes"])
def test_a_state_without_an_emotion_is_taken_with_a_warning_and_the_emotion_starts_afresh(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, plain = build(name), build(name)
    handle = attach(optimizer)
    run(optimizer, handle, range(6))
    run(plain, None, range(4))
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert handle.emotion.observations == 0
    assert caplog.text.count("holds no emotion: it starts afresh") == 1
    assert_identical(optimizer.state_dict()["state"], plain.state_dict()["state"])


def test_a_state_of_another_law_is_refused_with_both_names_and_nothing_is_changed() -> None:
    source = build()
    run(source, attach(source, "v3.0"), range(3))
    optimizer = build()
    handle = attach(optimizer, "v3.1")
    run(optimizer, handle, range(2))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"follows the law 'v3.0', the one attached here 'v3.1'"):
        optimizer.load_state_dict(source.state_dict())
    assert_identical(snapshot(optimizer), before)

    late = build()
    late.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match=r"follows the law 'v3.0', the one attached here 'v3.1': attach law='v3.0'"):
        attach(late, "v3.1")
    assert not late._optimizer_step_pre_hooks, "nothing of an emotion that was refused is left"
    assert attach(late, "v3.0").emotion.observations == 3


def test_states_of_emo_optimizers_and_of_attached_ones_are_told_apart() -> None:
    emo, optimizer = EmoNavi(parameters(SHAPES)), torch.optim.AdamW(parameters(SHAPES))
    attach(optimizer)
    with pytest.raises(ValueError, match="was saved by EmoNavi, not by AdamW"):
        optimizer.load_state_dict(emo.state_dict())
    with pytest.raises(ValueError, match="was saved by AdamW, not by EmoNavi"):
        emo.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("damage", "said"),
    [({"short": "x"}, "is damaged"), ({"window": [0.0]}, "is damaged"), ({"format": 99}, "format 99")],
)
def test_a_damaged_emotion_is_refused_and_nothing_is_changed(damage: dict[str, Any], said: str) -> None:
    optimizer = build()
    handle = attach(optimizer)
    run(optimizer, handle, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["emotion"].update(damage)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(state)
    assert_identical(snapshot(optimizer), before)


def test_losses_that_wait_for_a_step_are_forgotten_when_a_state_is_loaded() -> None:
    optimizer = build()
    handle = attach(optimizer)
    run(optimizer, handle, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    handle.observe(1000.0)
    optimizer.load_state_dict(state)
    run(optimizer, handle, range(3, 4))
    assert handle.emotion.long < 10.0


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_torchs_state_dicts_for_distributed_checkpoints_carry_it(name: str, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
        groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[1].parameters(), "lr": 0.002}]
        optimizer = MAKERS[name](groups)
        runs.append((model, optimizer, attach(optimizer)))
    (model, optimizer, handle), (other, twin, again) = runs
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a step without a loss, which torch takes to create the state
        get_optimizer_state_dict(model, optimizer)
        run(optimizer, handle, range(5))
        assert handle.emotion.observations == 5
        other.load_state_dict(model.state_dict())
        state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        set_optimizer_state_dict(other, twin, state, options=options)
    assert again.emotion == handle.emotion
    run(optimizer, handle, range(5, 8))
    run(twin, again, range(5, 8))
    assert_identical(weights(twin), weights(optimizer))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_is_the_optimizer_without_the_emotion_and_can_be_given_one(
    duplicate: Callable[[Optimizer], Optimizer], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, twin = build(), build()
    handle = attach(optimizer)
    run(optimizer, handle, range(4))
    copied = duplicate(optimizer)
    scaled_by_hand(twin, factors(4))
    run(copied, None, range(4, 6))
    run(twin, None, range(4, 6))
    assert_identical(weights(copied), weights(twin))
    assert handle.emotion.observations == 4
    copied.zero_grad()
    assert attach(copied).emotion.observations == 0
    caplog.clear()
    optimizer.load_state_dict(duplicate(optimizer).state_dict())
    assert "starts afresh" in caplog.text
    assert handle.emotion.observations == 0


# Gradients that are thrown away


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loss_whose_gradients_are_reset_without_a_step_is_dropped(set_to_none: bool) -> None:
    model, loss_of = regression()
    optimizer = torch.optim.AdamW(model.parameters())
    handle = attach(optimizer)
    for offset, steps in ((1000.0, False), (0.0, True)):
        loss = loss_of() + offset
        handle.observe(loss)
        loss.backward()
        if steps:
            optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        assert all((param.grad is None) == set_to_none for param in all_params(optimizer))
    assert handle.emotion.short == pytest.approx(loss_of().item(), rel=0.1)
    assert (handle.emotion.observations, handle.emotion.skipped) == (1, 1)


def test_a_step_that_the_gradient_scaler_leaves_out_takes_its_loss_along() -> None:
    model, loss_of = regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    handle = attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    felt = []
    for overflow in (False, True, False):
        optimizer.zero_grad()
        loss = loss_of() + 100.0 * overflow
        handle.observe(loss)
        scaler.scale(loss).backward()
        if overflow:
            model.bias.grad.fill_(torch.inf)
        else:
            felt.append(loss.item())
        scaler.step(optimizer)
        scaler.update()
    assert handle.emotion.short == pytest.approx(0.3 * felt[1] + 0.7 * felt[0])
    assert (handle.emotion.observations, handle.emotion.skipped) == (2, 1)


def test_a_fused_optimizer_judges_an_overflow_by_itself_so_that_its_loss_is_felt() -> None:
    """To know of it would mean to wait for the device."""
    model, loss_of = regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    handle = attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loss = loss_of()
    handle.observe(loss)
    scaler.scale(loss).backward()
    model.bias.grad.fill_(torch.inf)
    before = weights(optimizer)
    scaler.step(optimizer)
    assert_identical(weights(optimizer), before)
    assert handle.emotion.short == loss.item()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_micro_batches_are_added_up() -> None:
    optimizer = build()
    handle = attach(optimizer)
    give_gradients(all_params(optimizer), 0)
    for part in (1.0, 2.0, 3.0):
        handle.observe(torch.tensor(part) / 4)
    optimizer.step()
    assert handle.emotion.short == 1.5


# Groups


def test_a_group_that_is_added_later_is_scaled_saved_and_named() -> None:
    optimizer = build()
    handle = attach(optimizer)
    run(optimizer, handle, range(2))
    added = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [added], "lr": 1.0, "name": "late"})
    assert set(handle.effective_lr) == {"group_0", "rest", "late"}
    run(optimizer, handle, range(2, 7))
    assert handle.effective_lr["late"] == handle.emotion.coefficient != 1.0
    assert optimizer.param_groups[2]["lr"] == 1.0
    assert [saved["emotion"]["observations"] for saved in optimizer.state_dict()["param_groups"]] == [7] * 3


def test_groups_that_are_made_anew_do_not_end_the_emotion() -> None:
    optimizer = build()
    handle = attach(optimizer)
    run(optimizer, handle, range(4))
    optimizer.param_groups = [{"params": all_params(optimizer), **optimizer.defaults}]
    run(optimizer, handle, range(4, 6))
    assert handle.emotion.observations == 6


# Taking it off


def traces(optimizer: Optimizer) -> dict[str, Any]:
    """Everything of an optimizer that an emotion could have left something in."""
    own = {key: value for key, value in vars(optimizer).items() if key not in ("state", "param_groups")}
    for noted_by_torch_in_a_step in ("_warned_capturable_if_run_uncaptured", "_opt_called"):
        own.pop(noted_by_torch_in_a_step, None)
    return copy.copy(own) | {
        "hooks": {key: len(value) for key, value in own.items() if key.endswith("hooks")},
        "groups": [sorted(group) for group in optimizer.param_groups],
        "methods": [optimizer.step, optimizer.zero_grad],
    }


@pytest.mark.parametrize("scheduled", [False, True])
def test_detach_leaves_nothing_behind(scheduled: bool) -> None:
    optimizer, twin = build(), build()
    if scheduled:  # it puts a step() of its own in the optimizer's
        lr_scheduler.ConstantLR(optimizer, 1.0)
        lr_scheduler.ConstantLR(twin, 1.0)
    before = traces(optimizer)
    handle = attach(optimizer)
    run(optimizer, handle, range(6))
    handle.detach()
    handle.detach()
    assert traces(optimizer) == before
    scaled_by_hand(twin, factors(6))
    run(optimizer, None, range(6, 8))
    run(twin, None, range(6, 8))
    assert_identical(weights(optimizer), weights(twin))
    assert_identical(optimizer.state_dict(), twin.state_dict())
    assert attach(optimizer).emotion.observations == 0


def test_what_others_have_put_over_the_methods_stays_when_it_is_taken_off_and_put_back() -> None:
    optimizer = build()
    first = attach(optimizer)
    calls = []

    def noted(name: str, below: Callable[..., Any]) -> Callable[..., Any]:
        def theirs(*args: Any) -> Any:
            calls.append(name)
            return below(*args)

        return theirs

    for name in ("zero_grad", "step"):
        setattr(optimizer, name, noted(name, getattr(optimizer, name)))
    first.detach()
    run(optimizer, None, range(2))
    optimizer.zero_grad()
    assert calls == ["step", "step", "zero_grad"]
    assert all(param.grad is None for param in all_params(optimizer))
    second = attach(optimizer)
    run(optimizer, second, range(2))
    loss = all_params(optimizer)[0].sum() * 0.0 + 1000.0
    second.observe(loss)
    loss.backward()
    optimizer.zero_grad()
    assert (second.emotion.observations, second.emotion.skipped) == (2, 1)
    assert (first.emotion.observations, first.emotion.skipped) == (0, 0)
    assert calls == ["step", "step", "zero_grad", "step", "step", "zero_grad"]


def test_after_detach_the_handle_still_tells_what_was_felt() -> None:
    optimizer = build()
    handle = attach(optimizer)
    run(optimizer, handle, range(4))
    felt = handle.emotion
    handle.detach()
    run(optimizer, None, range(4, 6))
    assert handle.emotion == felt
    assert "emotion" not in optimizer.param_groups[0]


# What it refuses


class Wrapper:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def test_it_reaches_into_wrappers() -> None:
    optimizer = build()
    assert attach(Wrapper(Wrapper(optimizer))).optimizer is optimizer


class StepsOne(torch.optim.SGD):
    """`step(param=…)` moves one parameter, as where gradients are released in backward."""

    def step(self, closure=None, *, param=None):
        if param is None:
            return super().step(closure)
        param.data.sub_(param.grad, alpha=self.param_groups[0]["lr"])
        return None


def layer_wise(model: nn.Module) -> Optimizer:
    """What the Trainer makes for GaLore by layers: the step moves nothing."""
    return pytest.importorskip("transformers.trainer_pt_utils").LayerWiseDummyOptimizer(optimizer_dict={})


def releasing_gradients(model: nn.Module) -> Optimizer:
    optimizer = StepsOne(model.parameters(), lr=0.1)
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda param: optimizer.step(param=param))
    return optimizer


def moving_by_hooks(model: nn.Module) -> Optimizer:
    def move(param: torch.Tensor) -> None:
        param.data.sub_(param.grad, alpha=0.1)
        param.grad = None

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(move)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("make", [layer_wise, releasing_gradients, moving_by_hooks])
def test_an_optimizer_that_moves_parameters_within_backward_is_refused_at_its_first_step(make: Any) -> None:
    model, loss_of = regression()
    optimizer = make(model)
    handle = attach(optimizer)

    def step() -> None:
        loss = loss_of()
        handle.observe(loss)
        loss.backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"moves parameters one by one within backward.*emo_hf\.step_in_backward"):
        step()


class SharpnessAware(Optimizer):
    """SAM as it is mostly used: two calls around two backward passes, and never `step()`."""

    def __init__(self, params: Any, base: type[Optimizer], **options: Any) -> None:
        super().__init__(params, options)
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for param in all_params(self):
            self.state[param]["moved"] = 0.05 * param.grad
            param.add_(self.state[param]["moved"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for param in all_params(self):
            param.sub_(self.state[param]["moved"])
        self.base.step()
        self.zero_grad()


def test_an_optimizer_that_steps_another_past_its_own_step_is_scaled_there() -> None:
    model, loss_of = regression()
    optimizer = SharpnessAware(model.parameters(), torch.optim.SGD, lr=0.1)
    handle = attach(optimizer)
    rates, values = [], []
    optimizer.base.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    for step in range(4):
        loss = loss_of() * (1.0 if step else 100.0)  # a sudden fall, so that the factor is not 1
        values.append(loss.item())
        handle.observe(loss)
        loss.backward()
        optimizer.first_step()
        loss_of().backward()
        optimizer.second_step()
        assert rates[-1] == 0.1 * handle.emotion.coefficient
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert rates[-1] != 0.1
    assert (handle.emotion.observations, handle.emotion.skipped) == (4, 0)
    long = values[0]
    for value in values[1:]:
        long = 0.01 * value + 0.99 * long
    assert handle.emotion.long == pytest.approx(long)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: None, TypeError, "attach takes a torch.optim.Optimizer.*got NoneType.*Attach to the optimizer"),
        (lambda: nn.Linear(1, 1), TypeError, "attach takes a torch.optim.Optimizer.*got Linear"),
        (lambda: Wrapper(3), TypeError, "attach takes a torch.optim.Optimizer.*got int"),
        (lambda: EmoNavi(parameters()), ValueError, "EmoNavi has an emotion of its own.*emo_law='v3.1'"),
        (lambda: attach(build()).optimizer, ValueError, r"AdamW has an emotion already: detach\(\) it first"),
        (lambda: torch.optim.LBFGS(parameters()), TypeError, "LBFGS evaluates the loss many times.*use an optimizer"),
    ],
)
def test_what_cannot_be_given_an_emotion_is_refused_with_a_way_out(
    make: Callable[[], Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        attach(make())


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"law": "v9"}, ValueError, "emo_law must be one of v3.0, .*none, got 'v9'"),
        ({"sync": "some"}, ValueError, "must be one of global, local, got 'some'"),
        ({"patience": 3}, TypeError, "the law v3.1 has no option patience"),
        ({"law": "v3.9", "stopcoef": -1}, ValueError, "stopcoef=-1 is not acceptable"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_attached(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    optimizer = build()
    before = traces(optimizer)
    with pytest.raises(error, match=said):
        attach(optimizer, **arguments)
    assert traces(optimizer) == before


def test_it_is_part_of_the_package(caplog: pytest.LogCaptureFixture) -> None:
    assert emo_hf.attach is attach
    with caplog.at_level(logging.WARNING):
        attach(build())
    assert not caplog.records


# Ranks

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_job("attached", tmp_path_factory.mktemp("attached"))


@pytest.mark.long
def test_the_ranks_of_a_trainer_have_one_emotion_and_the_same_weights_at_every_step(ranks: Results) -> None:
    one, other = (rank["trainer"] for rank in ranks)
    assert_identical(one, {**other, "logged": one["logged"], "started": one["started"]})
    assert len(one["felt"]) == one["emotion"]["observations"] == 40
    assert one["emotion"]["skipped"] == 0
    assert one["felt"] == pytest.approx(one["logged"], rel=1e-5)
    travelling = one["started"][1:] + other["started"][1:]  # in the first step the ranks compare their options before
    assert all(travelling), "the loss travels while backward computes"


@pytest.mark.long
def test_ddp_and_fsdp2_take_the_steps_of_one_process_on_the_whole_batch(ranks: Results) -> None:
    one, other = (rank["strategies"] for rank in ranks)
    assert_identical(one, other)
    for kind in ("ddp", "fsdp2"):
        for part in ("weights", "state"):
            torch.testing.assert_close(one[kind][part], one["alone"][part], rtol=1e-4, atol=1e-5)
        assert one[kind]["factors"] == pytest.approx(one["alone"]["factors"], rel=1e-4)
        assert one[kind]["emotion"]["short"] == pytest.approx(one["alone"]["emotion"]["short"], rel=1e-5)
        assert one[kind]["rates"] == [0.05]
    assert one["alone"]["factors"][-1] > 1.1


@pytest.mark.long
@pytest.mark.parametrize("way", ["sharded", "flat", "checkpoint to fsdp2", "checkpoint to ddp"])
def test_a_sharded_run_goes_on_from_its_state_to_the_last_bit(ranks: Results, way: str) -> None:
    for rank in ranks:
        result = rank["state dicts"][way]
        assert result["observations"] == 12
        assert result["resumed"]["emotion"]["observations"] == 20
        resumed, went_on = result["resumed"], result["went on"]
        assert 1.0 not in resumed["factors"]
        if way == "checkpoint to ddp":  # which sums in another order
            torch.testing.assert_close(resumed["weights"], went_on["weights"], rtol=1e-4, atol=1e-5)
        else:
            assert_identical(resumed, went_on)


@pytest.mark.long
def test_a_spoilt_gradient_on_one_rank_has_all_of_them_leave_out_the_step(ranks: Results) -> None:
    for rank in ranks:
        assert rank["spoilt"]["moved"] == [True, True, False, True, True]
        assert rank["spoilt"]["decisions"] == [Note(3, "skipped", 1.0, "gradients that are not finite")]
        assert rank["spoilt"]["finite"]
