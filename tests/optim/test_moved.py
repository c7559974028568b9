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
    each_implementation,
    each_optimizer,
    give_gradients,
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


@each_implementation
@pytest.mark.parametrize("options", [{}, {"use_shadow": True}], ids=["plain", "shadow"])
def test_a_part_of_the_model_that_joins_the_dtype_of_the_rest_takes_its_state_along(
    cls: type[EmoOptimizer], implementation: str, options: dict[str, Any]
) -> None:
    model = two_layers(torch.float64, torch.float32)
    optimizer = make(cls, model.parameters(), implementation, lr=0.01, **options)
    steps(optimizer, range(HALF))
    alone = two_layers(torch.float64, torch.float64)
    alone.load_state_dict(model.state_dict())
    other = make(cls, alone.parameters(), implementation, lr=0.01, **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # which casts the state
    model[1].double()
    for each in (optimizer, other):
        steps(each, range(HALF, STEPS))
    assert all(value.dtype is torch.float64 for param in model.parameters() for value in of_state(optimizer, param))
    assert_identical(list(model.state_dict().values()), list(alone.state_dict().values()))


@each_optimizer
def test_compensation_and_shadow_follow_a_new_dtype_and_what_is_kept_in_float32_stays(cls: type[EmoOptimizer]) -> None:
    model = two_layers(torch.bfloat16, torch.float16)
    optimizer = cls(model.parameters(), lr=0.01, compensate=True, use_shadow=True)
    steps(optimizer, range(HALF))
    model[1].bfloat16()
    steps(optimizer, range(HALF, STEPS))
    for param in model.parameters():
        dtypes = {key: value.dtype for key, value in optimizer.state[param].items()}
        assert dtypes.pop("compensation") is dtypes.pop("shadow") is torch.bfloat16
        assert set(dtypes.values()) <= {torch.float32}


@each_implementation
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
@each_optimizer
@pytest.mark.parametrize("moved", ["all", "the second layer"])
def test_state_goes_to_the_device_where_its_parameter_is(cls: type[EmoOptimizer], moved: str) -> None:
    """The meta device holds no numbers; where the state lies shows on it as on any other."""
    if rule_of(cls) in (Tion, Void) and moved != "all":
        pytest.skip("the norm of a group needs the numbers of all of its parameters")
    model = two_layers()
    optimizer = cls(model.parameters(), lr=0.01, use_shadow=True, foreach=False, fused=False)
    steps(optimizer, range(HALF))
    (model if moved == "all" else model[1]).to("meta")
    steps(optimizer, range(HALF, STEPS))
    for layer, device in zip(model, ("meta" if moved == "all" else "cpu", "meta"), strict=True):
        for param in layer.parameters():
            assert {value.device.type for value in of_state(optimizer, param)} == {param.device.type} == {device}
    assert optimizer.emotion.observations == STEPS


@pytest.mark.usefixtures("swapped")
@each_optimizer
def test_a_state_saved_on_one_device_is_loaded_onto_that_of_the_parameters(cls: type[EmoOptimizer]) -> None:
    source, model = two_layers(), two_layers().to("meta")
    saved, optimizer = (cls(each.parameters(), foreach=False, fused=False) for each in (source, model))
    steps(saved, range(HALF))
    optimizer.load_state_dict(saved.state_dict())
    if not rule_of(cls)(saved.defaults).new_state(source[0].weight):
        pytest.skip("this rule keeps nothing for a parameter")
    assert {value.device.type for param in model.parameters() for value in of_state(optimizer, param)} == {"meta"}
    assert optimizer.emotion == saved.emotion
    assert {value.device.type for param in source.parameters() for value in of_state(saved, param)} == {"cpu"}


def test_a_loss_on_a_device_without_numbers_is_an_error_and_not_a_feeling() -> None:
    optimizer = EmoNavi(two_layers().parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):
        optimizer.step(lambda: torch.ones((), device="meta"))
    assert optimizer.emotion.observations == 0


@on_cuda
@each_optimizer
@pytest.mark.parametrize("use_shadow", [False, True])
def test_a_model_goes_to_the_gpu_and_back_in_mid_run(cls: type[EmoOptimizer], use_shadow: bool) -> None:
    travelled, stayed = two_layers(), two_layers()
    optimizers = [cls(model.parameters(), lr=0.01, use_shadow=use_shadow) for model in (travelled, stayed)]
    for place, numbers in (("cpu", range(2)), ("cuda", range(2, 4)), ("cpu", range(4, 6))):
        travelled.to(place)
        for optimizer in optimizers:
            steps(optimizer, numbers)
        for param in travelled.parameters():
            assert {value.device.type for value in of_state(optimizers[0], param)} == {place}
    for one, other in zip(travelled.parameters(), stayed.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert optimizers[0].emotion == optimizers[1].emotion


@on_cuda
@each_optimizer
def test_half_a_model_on_the_gpu_trains_as_the_whole_on_the_cpu(cls: type[EmoOptimizer]) -> None:
    split, whole = two_layers(), two_layers()
    optimizers = [cls(model.parameters(), lr=0.01) for model in (split, whole)]
    for optimizer in optimizers:
        steps(optimizer, range(HALF))
    split[1].to("cuda")
    for optimizer in optimizers:
        steps(optimizer, range(HALF, STEPS))
    split.to("cpu")
    for one, other in zip(split.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@on_cuda
@each_optimizer
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


@each_optimizer
def test_parameters_added_in_mid_run_begin_their_own_state_under_the_emotion_that_is_there(
    cls: type[EmoOptimizer],
) -> None:
    first, added = two_layers()
    optimizer = cls(first.parameters(), lr=0.01)
    steps(optimizer, range(HALF))
    felt = optimizer.emotion
    before = [param.detach().clone() for param in added.parameters()]
    optimizer.add_param_group({"params": list(added.parameters()), "lr": 0.02, "name": "added"})
    assert optimizer.emotion == felt
    steps(optimizer, range(HALF, STEPS))
    assert optimizer.emotion.observations == STEPS
    assert optimizer.effective_lr["added"] == pytest.approx(0.02 * optimizer.emotion.coefficient)
    for param, old in zip(added.parameters(), before, strict=True):
        assert not torch.equal(param, old)
    fresh = cls(added.parameters(), lr=0.02)
    give_gradients(list(added.parameters()), 0)
    fresh.observe(1.0)
    fresh.step()
    for param in added.parameters():
        assert optimizer.state[param].keys() == fresh.state[param].keys()
    again = cls([{"params": list(first.parameters()), "lr": 0.01}, {"params": list(added.parameters()), "lr": 0.02}])
    again.load_state_dict(optimizer.state_dict())
    assert again.emotion == optimizer.emotion
