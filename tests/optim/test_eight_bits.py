"""The formats of 8 bits: what is kept of numbers, and how they are rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emo_hf.optim.kernels import build
from emo_hf.optim.precision.eight_bits import BLOCK, SMALLEST, decode, draw, encode, join, split
from emo_hf.optim.precision.low import first_compensation, in_eight_bits
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.rules.rule import careful
from emo_hf.optim.update import Bucket, Hyperparameters, StateOfPart
from tests.emo_cases import assert_identical


def values(dtype: torch.dtype, count: int = 5000) -> Tensor:
    """Numbers over six decades."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 0, count)
    return x if dtype is torch.int8 else x * x


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["signed", "unsigned"])
def test_codes_keep_6_percent_and_the_largest_exactly_and_rounding_at_random_has_the_right_mean(
    dtype: torch.dtype,
) -> None:
    x = values(dtype)
    codes, sizes = encode(x, dtype, None)
    kept = decode(codes, sizes)
    assert float(((kept - x).abs() / x.abs()).max()) < 0.0625
    for of_block, kept_of_block in zip(x.split(BLOCK), kept.split(BLOCK), strict=True):
        largest = of_block.abs().argmax()
        torch.testing.assert_close(kept_of_block[largest], of_block[largest], rtol=1e-6, atol=0)

    codes_again, sizes_again = encode(kept, dtype, draw(torch.randn(5000), 0, 3))
    assert torch.equal(codes, codes_again)  # what has been rounded stays what it is
    torch.testing.assert_close(sizes, sizes_again)

    gradient = torch.zeros(5000)
    mean = sum((decode(*encode(x, dtype, draw(gradient, 0, seed))) for seed in range(500)), torch.zeros(5000)) / 500
    error = (mean - x) / x.abs()
    assert abs(float(error.mean())) < 1e-4
    assert float(error.abs().max()) < 0.02


def test_an_average_of_squares_does_not_become_zero() -> None:
    x = torch.tensor([1.0, 1e-30, 0.0])
    codes, _ = encode(x, torch.uint8, draw(torch.zeros(3), 0, 0))
    assert codes.tolist() == [255, 1, 0]


def test_24_bits_hold_a_float32_to_its_last_byte_and_lose_no_small_update() -> None:
    x = torch.cat([values(torch.int8), torch.tensor([0.0, -0.0, 1.0, -1.5, torch.inf, -torch.inf])])
    param, correction = split(x, draw(x, 0, 1))
    assert float(((param.float() - x).abs() / x.abs())[:5000].max()) < 2**-8
    kept = join(param, correction)
    assert float(((kept - x).abs() / x.abs())[:5000].max()) < 2**-15
    assert torch.equal(kept[5000:], x[5000:])
    nans = torch.tensor([0x7FC00000, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # of few and of all bits
    assert bool(join(*split(nans, torch.full((3,), 0xFFFFFFFF))).isnan().all())

    param, correction = torch.ones(4096, dtype=torch.bfloat16), torch.zeros(4096).char()
    for step in range(64):
        smaller = join(param, correction) - 2.0**-20  # a sixteenth of the last bit
        param, correction = split(smaller, draw(torch.zeros(4096), 0, step))
    assert float(join(param, correction).mean()) == pytest.approx(1 - 64 * 2.0**-20, abs=4 * 2.0**-20)


@pytest.mark.parametrize("by", ["native", "torch"])
def test_parts_of_a_tensor_come_to_the_codes_of_the_whole(by: str) -> None:
    if by == "native" and build.find_compiler() is None:
        pytest.skip("there is no C compiler")
    moves = Navi.implementations["native"] if by == "native" else careful(Navi.implementations["single"])
    numbers = Hyperparameters(lr=1e-3, decay=1e-4, beta1=0.9, beta2=0.99, eps=1e-8, seed=3)
    param = torch.randn(4 * SMALLEST, generator=torch.Generator().manual_seed(0)).bfloat16()
    gradient = torch.full((4 * SMALLEST,), 0.1, dtype=torch.bfloat16)  # what is equal is rounded by its place alone
    wide = {key: torch.zeros_like(param, dtype=torch.float32) for key in Navi.eight_bit_state}
    first = in_eight_bits({**wide, "compensation": first_compensation(param, "8bit")}, Navi.eight_bit_state)
    kept = []
    for parts in (1, 4):
        p, state = param.detach().clone(), {key: value.clone().view(-1) for key, value in first.items()}
        bucket = Bucket()
        pieces = zip(*[tensor.chunk(parts) for tensor in (p, gradient, *state.values())], strict=True)
        for i, (p_piece, g_piece, *own) in enumerate(pieces):
            place = i * p.numel() // parts
            bucket.add(p_piece, g_piece, StateOfPart(dict(zip(state, own, strict=True)), place))
        moves(bucket, numbers)
        kept.append([p, *state.values()])
    assert_identical(*kept)
    assert bool((kept[0][0] != param).any())
