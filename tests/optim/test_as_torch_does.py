"""What PyTorch's own suite asks of every optimizer: implementations agree, states are cast, hooks and closures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf import EmoNavi, EmoOptimizer
from emo_hf.optim.options import IMPLEMENTATION_OPTIONS
from tests.emo_cases import OPTIMIZERS, assert_identical, each_optimizer, held, lr_for, parameters, rule_of, run

OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": torch.tensor(0.001)},
    {"weight_decay": 0.1, "maximize": True},
    {"betas": (0.8, 0.95), "eps": 1e-4},
    {"use_shadow": True, "weight_decay": 0.1, "lr": 0.01},
]
PRECISION = {torch.float64: 1e-9, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def implementations(cls: type[EmoOptimizer]) -> list[str]:
    return [name for name in IMPLEMENTATION_OPTIONS if name in rule_of(cls).implementations]


def followed(cls: type[EmoOptimizer], device: str, dtype: torch.dtype, **options: Any) -> list[list[torch.Tensor]]:
    """Parameters and state after each of some steps, on shapes of every kind and now and then without a gradient."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(3, 4), (5,), (2, 3, 2, 2), (), (0,), (1,), (3, 1)]
    params = [nn.Parameter(torch.rand(s, generator=generator, dtype=torch.float32).to(device, dtype)) for s in shapes]
    params[0].data = params[0].data.t()  # a parameter that is not contiguous
    optimizer, seen = cls(params, **options), []
    for step, loss in enumerate([2.0, 1.9, 1.5, 3.0, 9.0, 2.5, 1.0, 0.2]):  # quiet, improving, worsening, leaping
        for i, param in enumerate(params):
            away_from_zero = 0.5 + torch.rand(param.shape, generator=generator, dtype=torch.float32).to(param)
            param.grad = None if (i + step) % 7 == 5 else away_from_zero * (-1) ** (i + step // 3)
        optimizer.observe(loss)
        optimizer.step()
        seen.append(held([tensor for p in params for tensor in (p, *optimizer.state[p].values())]))
    return seen


@pytest.mark.parametrize("device", DEVICES)
@each_optimizer
def test_every_implementation_comes_to_what_the_plain_one_does(cls: type[EmoOptimizer], device: str) -> None:
    off = dict.fromkeys(implementations(cls), False)
    for dtype, exact in PRECISION.items():
        for options in OPTIONS:
            plain = followed(cls, device, dtype, **copy.deepcopy(options), **off)
            for name in implementations(cls):
                ours = followed(cls, device, dtype, **copy.deepcopy(options), **{**off, name: True})
                torch.testing.assert_close(ours, plain, rtol=exact, atol=exact)


@each_optimizer
def test_the_default_dtype_makes_no_difference(cls: type[EmoOptimizer]) -> None:
    for chosen in ({}, *({name: True} for name in implementations(cls))):
        usual = followed(cls, "cpu", torch.float32, **chosen)
        try:
            torch.set_default_dtype(torch.float64)
            assert_identical(followed(cls, "cpu", torch.float32, **chosen), usual)
        finally:
            torch.set_default_dtype(torch.float32)


@each_optimizer
def test_nothing_moves_without_gradients_or_with_zeros_or_at_rate_0_and_an_empty_parameter_is_fine(
    cls: type[EmoOptimizer],
) -> None:
    for chosen in ({}, *({name: True} for name in implementations(cls))):
        params = [torch.randn(2, 3), *parameters(), nn.Parameter(torch.empty(0))]
        before = held(params)
        optimizer = cls(params, weight_decay=0.0, **chosen)
        assert float(optimizer.step(lambda: torch.tensor([1.0]))) == 1.0
        assert not optimizer.state_dict()["state"]
        for loss in (2.0, 1.8, 1.7):
            for param in params[1:]:
                param.grad = torch.zeros_like(param)
            optimizer.observe(loss)
            optimizer.step()
        assert_identical(held(params), before)
        moving, still = parameters()
        optimizer = cls([{"params": [moving], "lr": lr_for(cls, 0.01)}, {"params": [still], "lr": 0.0}], **chosen)
        run(optimizer, range(5))
        assert [torch.equal(p, old) for p, old in zip((moving, still), parameters(), strict=True)] == [False, True]


@each_optimizer
def test_a_state_is_cast_to_its_parameters_and_may_be_named_or_from_before_an_option_existed(
    cls: type[EmoOptimizer],
) -> None:
    named = [("weight", nn.Parameter(torch.ones(3, 4))), ("bias", nn.Parameter(torch.ones(5)))]
    for params, given in ((parameters(), named), (named, parameters()), (named, named)):
        source, target = cls(params, use_shadow=True), cls(given)
        run(source, range(2))
        state = copy.deepcopy(source.state_dict())
        for group in state["param_groups"]:
            del group["foreach"], group["native"], group["compensate"], group["maximize"]
        target.load_state_dict(state)
        assert target.emotion == source.emotion
        assert target.param_groups[0]["maximize"] is False
        run(target, range(2, 3))
    doubles = [nn.Parameter(param.detach().double()) for param in parameters()]
    other = cls(doubles)
    other.load_state_dict(source.state_dict())
    assert {value.dtype for double in doubles for value in other.state[double].values()} == {torch.float64}
    run(other, range(2, 3))


def test_each_hook_runs_once_in_its_place_and_not_after_its_removal() -> None:
    optimizer = EmoNavi(parameters())
    kinds = ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")
    order: list[str] = []
    handles = []
    for kind in kinds:
        register = getattr(optimizer, f"register_{kind}_hook")
        handles.append(register(lambda *_, kind=kind: order.append(kind + " second")))
        handles.append(register(lambda *_, kind=kind: order.append(kind + " first"), prepend=True))
    for when in ("pre", "post"):
        register = getattr(optimizer, f"register_step_{when}_hook")
        handles.append(register(lambda opt, *_, when=when: order.append(f"{when} step {opt.emotion.observations}")))
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
        run(optimizer, range(1))
        for handle in handles:
            handle.remove()
    wanted = [f"{kind} {place}" for kind in kinds for place in ("first", "second")]
    assert order == [*wanted, "pre step 0", "post step 1"]


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_closure_runs_once_with_gradients_and_its_loss_is_returned_and_felt(cls: type[EmoOptimizer]) -> None:
    (param,) = parameters([(3,)])
    optimizer = cls([param])
    calls: list[bool] = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = param.square().sum()
        loss.backward()
        return loss

    step: Callable[..., Any] = optimizer.step
    with torch.no_grad():
        loss = step(closure)
    assert calls == [True]
    assert optimizer.emotion.short == loss.item()
    assert bool(param.isfinite().all())
