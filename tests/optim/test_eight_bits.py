"""State in 8 bits and bfloat16 with 8 bits more: what is kept, how it is rounded, that it trains and resumes."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emo_hf import EmoCats, EmoFact, EmoLynx, EmoNavi, EmoOptimizer, EmoTion
from emo_hf.optim.kernels import build
from emo_hf.optim.precision import low
from emo_hf.optim.precision.eight_bits import BLOCK, SIZES, SMALLEST, decode, draw, encode, join, split
from emo_hf.optim.precision.low import first_compensation, in_eight_bits, in_float32_if_kept_in_less
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.state_keys import COMPENSATION, EXP_AVG, EXP_AVG_SQ
from emo_hf.optim.update import Bucket, Hyperparameters, StateOfPart
from tests.emo_cases import assert_identical, lr_for
from tests.optim.test_low_precision import final_error

FORMATS = pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["signed", "unsigned"])
WITH_STATE: list[type[EmoOptimizer]] = [EmoNavi, EmoLynx, EmoCats, EmoTion]
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler")


def values(dtype: torch.dtype, count: int = 5000) -> Tensor:
    """Numbers over six decades."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator) * torch.logspace(-6, 0, count)
    return x if dtype is torch.int8 else x * x


@FORMATS
def test_large_values_are_kept_to_6_percent_and_the_largest_exactly(dtype: torch.dtype) -> None:
    x = values(dtype)
    kept = decode(*encode(x, dtype, None))
    assert float(((kept - x).abs() / x.abs()).max()) < 0.0625
    for of_block, kept_of_block in zip(x.split(BLOCK), kept.split(BLOCK), strict=True):
        largest = of_block.abs().argmax()
        torch.testing.assert_close(kept_of_block[largest], of_block[largest], rtol=1e-6, atol=0)


@FORMATS
def test_rounding_at_random_has_the_right_mean(dtype: torch.dtype) -> None:
    x, gradient = values(dtype), torch.zeros(5000)
    mean = sum((decode(*encode(x, dtype, draw(gradient, 0, seed))) for seed in range(500)), torch.zeros(5000)) / 500
    error = (mean - x) / x.abs()
    assert abs(float(error.mean())) < 1e-4
    assert float(error.abs().max()) < 0.02


@FORMATS
def test_what_has_been_rounded_stays_what_it_is(dtype: torch.dtype) -> None:
    codes, sizes = encode(values(dtype), dtype, None)
    again, sizes_again = encode(decode(codes, sizes), dtype, draw(torch.randn(5000), 0, 3))
    assert torch.equal(codes, again)
    torch.testing.assert_close(sizes, sizes_again)


def test_an_average_of_squares_does_not_become_zero() -> None:
    x = torch.tensor([1.0, 1e-30, 0.0])
    codes, _ = encode(x, torch.uint8, draw(torch.zeros(3), 0, 0))
    assert codes.tolist() == [255, 1, 0]


def test_24_bits_hold_a_float32_to_its_last_byte() -> None:
    x = torch.cat([values(torch.int8), torch.tensor([0.0, -0.0, 1.0, -1.5, torch.inf, -torch.inf])])
    param, correction = split(x, draw(x, 0, 1))
    assert float(((param.float() - x).abs() / x.abs())[:5000].max()) < 2**-8
    kept = join(param, correction)
    assert float(((kept - x).abs() / x.abs())[:5000].max()) < 2**-15
    assert torch.equal(kept[5000:], x[5000:])
    assert bool(join(*split(torch.tensor([torch.nan]), draw(torch.zeros(1), 0, 0))).isnan())


def test_an_update_too_small_for_24_bits_is_not_lost() -> None:
    x, param, correction = torch.full((4096,), 1.0), torch.ones(4096, dtype=torch.bfloat16), torch.zeros(4096).char()
    for step in range(64):
        x = join(param, correction) - 2.0**-20  # a sixteenth of the last bit
        param, correction = split(x, draw(torch.zeros(4096), 0, step))
    assert float(join(param, correction).mean()) == pytest.approx(1 - 64 * 2.0**-20, abs=4 * 2.0**-20)


def params_of(dtype: torch.dtype, shapes: Any = ((80, 70), (5,), (SMALLEST + 3,))) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def train(optimizer: EmoOptimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.observe(2.0 * 0.9**step)
        optimizer.step()


@needs_compiler
@pytest.mark.parametrize("cls", WITH_STATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_and_torch_keep_the_same_codes(cls: type[EmoOptimizer], dtype: torch.dtype) -> None:
    kept = []
    for native in (True, False):
        params = params_of(dtype)
        optimizer = cls(params, lr=lr_for(cls, 1e-3), state="8bit", native=native)
        train(optimizer, range(3))
        kept.append([optimizer.state[param] for param in params])
    for by_kernel, by_torch in zip(*kept, strict=True):
        assert by_kernel.keys() == by_torch.keys()
        for key, codes in by_kernel.items():
            different = (codes.float() - by_torch[key].float()).abs()
            if codes.dtype in (torch.int8, torch.uint8):  # sums are rounded in another order: a code may be the next
                assert float(different.max()) <= 1
                assert float((different > 0).float().mean()) < 1e-3
            else:
                torch.testing.assert_close(codes, by_torch[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("by", [pytest.param("native", marks=needs_compiler), "torch"])
def test_parts_of_a_tensor_come_to_the_codes_of_the_whole(by: str) -> None:
    moves = (
        Navi.implementations["native"]
        if by == "native"
        else in_float32_if_kept_in_less(Navi.implementations["single"], elementwise=True)
    )
    numbers = Hyperparameters(lr=1e-3, decay=1e-4, beta1=0.9, beta2=0.99, eps=1e-8, seed=3)
    (param,) = params_of(torch.bfloat16, [(4 * SMALLEST,)])
    gradient = torch.full((4 * SMALLEST,), 0.1, dtype=torch.bfloat16)  # what is equal is rounded by its place alone
    wide = {key: torch.zeros_like(param, dtype=torch.float32) for key in Navi.eight_bit_state}
    first = in_eight_bits({**wide, "compensation": first_compensation(param, "8bit")}, Navi.eight_bit_state)
    kept = []
    for parts in (1, 4):
        p, state = param.detach().clone(), {key: value.clone().view(-1) for key, value in first.items()}
        pieces = [list(tensor.chunk(parts)) for tensor in (p, gradient, *state.values())]
        places = range(0, p.numel(), p.numel() // parts)
        states = [
            StateOfPart(dict(zip(state, own, strict=True)), place)
            for place, *own in zip(places, *pieces[2:], strict=True)
        ]
        moves(Bucket(pieces[0], pieces[1], list(states)), numbers)
        kept.append([p, *state.values()])
    assert_identical(*kept)
    assert bool((kept[0][0] != param).any())


@pytest.mark.parametrize("native", [None, False])
def test_working_on_less_at_a_time_changes_no_bit(native: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for elements in (1 << 18, 1024):
        monkeypatch.setattr(low, "ELEMENTS_IN_CACHES", elements)
        params = params_of(torch.bfloat16)
        optimizer = EmoNavi(params, lr=1e-3, state="8bit", compensate="8bit", native=native)
        train(optimizer, range(3))
        results.append(optimizer.state_dict())
    assert_identical(*results)


def test_8_bits_are_what_they_say_and_small_tensors_keep_floats() -> None:
    params = params_of(torch.bfloat16)
    optimizer = EmoNavi(params, lr=1e-3, state="8bit", compensate="8bit")
    train(optimizer, range(1))
    state = optimizer.state[params[0]]
    assert state[EXP_AVG].dtype is torch.int8
    assert state[EXP_AVG_SQ].dtype is torch.uint8
    assert state[COMPENSATION].dtype is torch.int8
    n = params[0].numel()
    assert sum(value.numel() * value.element_size() for value in state.values()) == 3 * n + 2 * 4 * -(-n // BLOCK)
    assert optimizer.state[params[1]][EXP_AVG].dtype is torch.float32


@pytest.mark.parametrize("cls", WITH_STATE)
def test_a_run_in_8_bits_resumes_to_the_last_bit(cls: type[EmoOptimizer]) -> None:
    options: dict[str, Any] = {"lr": lr_for(cls, 1e-3), "state": "8bit", "compensate": "8bit"}
    params = params_of(torch.bfloat16)
    optimizer = cls(params, **options)
    train(optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_params = [nn.Parameter(param.detach().clone()) for param in params]
    resumed = cls(resumed_params, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    clone = copy.deepcopy(resumed)
    for one in (optimizer, resumed, clone):
        train(one, range(3, 6))
    assert_identical(optimizer.state_dict(), resumed.state_dict())
    assert_identical(optimizer.state_dict(), clone.state_dict())
    assert all(map(torch.equal, params, resumed_params))


WAYS: list[dict[str, Any]] = [
    {},
    {"state": "8bit"},
    {"compensate": True},
    {"compensate": "8bit"},
    {"state": "8bit", "compensate": "8bit"},
]


@pytest.mark.parametrize("there", WAYS, ids=str)
@pytest.mark.parametrize("here", WAYS, ids=str)
def test_a_state_crosses_from_any_way_of_keeping_it_to_any_other(
    there: dict[str, Any], here: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    params = params_of(torch.bfloat16)
    saved = EmoNavi(params, lr=1e-3, **there)
    train(saved, range(3))
    loaded = EmoNavi(params, lr=1e-3, **here)
    with caplog.at_level(logging.WARNING):
        loaded.load_state_dict(saved.state_dict())
    assert ("kept in another way" in caplog.text) is (there != here)
    wanted = EmoNavi(params, lr=1e-3, **here)
    train(wanted, range(1))
    for param in params:
        now, then, like = loaded.state[param], saved.state[param], wanted.state[param]
        assert {key: (value.dtype, value.shape) for key, value in now.items()} == {
            key: (value.dtype, value.shape) for key, value in like.items()
        }
        for key in (EXP_AVG, EXP_AVG_SQ):
            one, other = (decode(s[key], s[key + SIZES]) if key + SIZES in s else s[key].float() for s in (now, then))
            assert float((one - other).abs().max()) <= 0.0625 * float(other.abs().max())
    before = [param.detach().clone() for param in params]
    train(loaded, range(3, 5))
    assert all(
        bool(param.isfinite().all()) and not torch.equal(param, old) for param, old in zip(params, before, strict=True)
    )


def test_what_cannot_be_kept_in_8_bits_says_so() -> None:
    with pytest.raises(ValueError, match=r"state='8bit': EmoFact v3\.1 keeps no averages that 8 bits would make"):
        EmoFact(params_of(torch.float32), state="8bit")
    with pytest.raises(ValueError, match="it takes one of 8bit"):
        EmoNavi(params_of(torch.float32), state="4bit")
    with pytest.raises(ValueError, match=r"compensate=8 .* it takes true, false or 8bit"):
        EmoNavi(params_of(torch.float32), compensate=8)  # type: ignore[arg-type]
    optimizer = EmoNavi(params_of(torch.float16), compensate="8bit")
    with pytest.raises(RuntimeError, match="is for bfloat16, and a parameter is float16: take compensate=True"):
        train(optimizer, range(1))


@pytest.mark.parametrize("cls", [EmoNavi, EmoLynx])
def test_training_in_8_bits_ends_where_float32_does_and_in_plain_bfloat16_does_not(cls: type[EmoOptimizer]) -> None:
    exact = final_error(cls, torch.float32, width=256)
    in_8_bits = final_error(cls, torch.bfloat16, width=256, state="8bit", compensate="8bit")
    assert in_8_bits == pytest.approx(exact, rel=0.1)
    assert final_error(cls, torch.bfloat16, width=256) > 1.2 * exact
