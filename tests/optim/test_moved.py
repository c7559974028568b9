"""Parameters that are moved after the optimizer was made: to another dtype, another memory, another device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf import EmoNavi, EmoOptimizer
from emo_hf.optim.rules.tion import Tion
from emo_hf.optim.rules.void import Void
from tests.emo_cases import (
    assert_identical,
    each_implementation_of_a_rule,
    each_rule,
    losses,
    make,
    rule_of,
)

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
HALF, STEPS = 3, 6


@pytest.fixture
def swapped():
    """Modules keep their parameters when they are moved to a device of another kind, and exchange what is in them."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def two_layers(first: torch.dtype = torch.float32, second: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2).to(first), nn.Linear(2, 4).to(second))


def steps(optimizer: EmoOptimizer, numbers: range) -> None:
    """Steps with the gradients and losses of their numbers, on the device where the parameters are now."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in numbers:
        generator = torch.Generator().manual_seed(1000 + step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        optimizer.observe(losses(STEPS)[step])
        optimizer.step()


def of_state(optimizer: EmoOptimizer, param: nn.Parameter) -> list[torch.Tensor]:
    return list(optimizer.state[param].values())


@each_implementation_of_a_rule
def test_a_part_of_the_model_that_joins_the_dtype_of_the_rest_takes_its_state_along(
    cls: type[EmoOptimizer], implementation: str
) -> None:
    model = two_layers(torch.float64, torch.float32)
    optimizer = make(cls, model.parameters(), implementation, lr=0.01, use_shadow=True)
    steps(optimizer, range(HALF))
    alone = two_layers(torch.float64, torch.float64)
    alone.load_state_dict(model.state_dict())
    other = make(cls, alone.parameters(), implementation, lr=0.01, use_shadow=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # which casts the state
    model[1].double()
    for each in (optimizer, other):
        steps(each, range(HALF, STEPS))
    assert all(value.dtype is torch.float64 for param in model.parameters() for value in of_state(optimizer, param))
    assert_identical(list(model.state_dict().values()), list(alone.state_dict().values()))


@pytest.mark.parametrize("compensate", [True, False])
@each_rule
def test_compensation_and_shadow_follow_a_new_dtype_and_what_is_kept_in_float32_stays(
    cls: type[EmoOptimizer], compensate: bool
) -> None:
    model = two_layers(torch.bfloat16, torch.float16)
    optimizer = cls(model.parameters(), lr=0.01, compensate=compensate, use_shadow=True)
    steps(optimizer, range(HALF))
    model[1].bfloat16()
    steps(optimizer, range(HALF, STEPS))
    for param in model.parameters():
        dtypes = {key: value.dtype for key, value in optimizer.state[param].items()}
        assert dtypes.pop("shadow") is torch.bfloat16
        assert dtypes.pop("compensation", None) is (torch.bfloat16 if compensate else None)
        for key, dtype in dtypes.items():
            assert dtype is (torch.float32 if compensate or key in rule_of(cls).float32_state else torch.bfloat16)


@each_implementation_of_a_rule
def test_data_that_is_swapped_below_a_parameter_is_what_is_trained(
    cls: type[EmoOptimizer], implementation: str
) -> None:
    """Flattening, offloading and averaging put other memory below a parameter; its state stays its own."""
    one, other = two_layers(), two_layers()
    optimizers = [make(cls, model.parameters(), implementation, lr=0.01) for model in (one, other)]
    for optimizer in optimizers:
        steps(optimizer, range(HALF))
    old = [param.data for param in one.parameters()]
    kept = [data.clone() for data in old]
    for param in one.parameters():
        param.data = param.data.clone()
    for optimizer in optimizers:
        steps(optimizer, range(HALF, STEPS))
    assert_identical(list(one.state_dict().values()), list(other.state_dict().values()))
    assert_identical(old, kept)


@pytest.mark.usefixtures("swapped")
@each_rule
@pytest.mark.parametrize("moved", ["all", "the second layer"])
def test_state_goes_to_the_device_where_its_parameter_is(cls: type[EmoOptimizer], moved: str) -> None:
    """The meta device holds no numbers; where the state lies shows on it as on any other."""
    if rule_of(cls) in (Tion, Void) and moved != "all":
        pytest.skip("the norm of a group needs the numbers of all of its parameters")
    in_8_bits = {"state": "8bit"} if rule_of(cls).eight_bit_state else {}
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(64, 64))
    optimizer = cls(model.parameters(), lr=0.01, use_shadow=True, foreach=False, fused=False, **in_8_bits)
    steps(optimizer, range(HALF))
    saved = copy.deepcopy(optimizer.state_dict())
    (model if moved == "all" else model[1]).to("meta")
    steps(optimizer, range(HALF, STEPS))
    assert optimizer.emotion.observations == STEPS
    loaded = cls(model.parameters(), foreach=False, fused=False, use_shadow=True, **in_8_bits)
    loaded.load_state_dict(saved)
    assert loaded.emotion.observations == HALF
    for layer, device in zip(model, ("meta" if moved == "all" else "cpu", "meta"), strict=True):
        for param in layer.parameters():
            for each in (optimizer, loaded):
                assert {value.device.type for value in of_state(each, param)} == {param.device.type} == {device}


def test_a_loss_on_a_device_without_numbers_is_an_error_and_not_a_feeling() -> None:
    optimizer = EmoNavi(two_layers().parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):
        optimizer.step(lambda: torch.ones((), device="meta"))
    assert optimizer.emotion.observations == 0


@on_cuda
@each_rule
@pytest.mark.parametrize("part", ["all", "the second layer"])
def test_a_model_or_half_of_it_goes_to_the_gpu_and_back_in_mid_run(cls: type[EmoOptimizer], part: str) -> None:
    travelled, stayed = two_layers(), two_layers()
    optimizers = [cls(model.parameters(), lr=0.01, use_shadow=part == "all") for model in (travelled, stayed)]
    for place, numbers in (("cpu", range(2)), ("cuda", range(2, 4)), ("cpu", range(4, 6))):
        (travelled if part == "all" else travelled[1]).to(place)
        for optimizer in optimizers:
            steps(optimizer, numbers)
        for param in travelled[1].parameters():
            assert {value.device.type for value in of_state(optimizers[0], param)} == {place}
    for one, other in zip(travelled.parameters(), stayed.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert optimizers[0].emotion == optimizers[1].emotion


@on_cuda
@each_rule
def test_a_state_saved_on_the_gpu_is_read_on_the_cpu_and_the_other_way_round(
    cls: type[EmoOptimizer], tmp_path: Any
) -> None:
    for here, there in (("cuda", "cpu"), ("cpu", "cuda")):
        source, target = two_layers().to(here), two_layers().to(there)
        saved, optimizer = cls(source.parameters(), lr=0.01), cls(target.parameters(), lr=0.01)
        steps(saved, range(HALF))
        torch.save(saved.state_dict(), tmp_path / "state.pt")
        target.load_state_dict(source.state_dict())
        optimizer.load_state_dict(torch.load(tmp_path / "state.pt", map_location=there, weights_only=True))
        for each in (saved, optimizer):
            steps(each, range(HALF, STEPS))
        assert optimizer.emotion == saved.emotion
        for one, other in zip(source.parameters(), target.parameters(), strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu())
