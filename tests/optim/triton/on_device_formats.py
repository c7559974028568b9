"""The formats of 8 bits in Triton's language, against those in torch. `test_kernels.py` runs this."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from emo_hf.optim.kernels.gpu import elementwise
from emo_hf.optim.kernels.gpu.source import eight_bits as source
from emo_hf.optim.precision.eight_bits import BLOCK, blocks_of, decode, draw, encode, join, split
from tests.optim.kernels.common import H
from tests.optim.test_eight_bits import values
from tests.optim.triton.common import CODES, DEVICE, assert_codes_agree


@triton.jit(do_not_specialize=["place", "seed"])
def draw_some(g, to, place, seed, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(to + at, source.draw(tl.load(g + at), place + at, seed).to(tl.int32, bitcast=True))


@triton.jit
def encode_some(x, chance, codes, sizes, back, FORMAT: tl.constexpr, N: tl.constexpr):
    at, blocks = tl.arange(0, N), tl.arange(0, N // source.SHARING)
    found, of_blocks = source.encode(tl.load(x + at), tl.load(chance + at).to(tl.uint32, bitcast=True), FORMAT)
    tl.store(codes + at, found)
    tl.store(sizes + blocks, of_blocks)
    tl.store(back + at, source.decode(found, of_blocks, FORMAT))


@triton.jit
def split_some(x, chance, p, c, back, N: tl.constexpr):
    at = tl.arange(0, N)
    new, rest = source.split(tl.load(x + at), tl.load(chance + at).to(tl.uint32, bitcast=True))
    tl.store(p + at, new)
    tl.store(c + at, rest)
    tl.store(back + at, source.join(new, rest))


def as_int32(chance: Tensor) -> Tensor:
    return torch.where(chance >= 1 << 31, chance - (1 << 32), chance).int()


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 + 5, 2**32 + 7])
@pytest.mark.parametrize("place", [0, 3, 2**31 - 100, 2**33 + 5])
def test_chance_has_the_same_bits_as_in_torch(place: int, seed: int) -> None:
    gradient = torch.randn(512, device=DEVICE)
    gradient[:4] = torch.tensor([0.0, -0.0, math.inf, math.nan])
    found = torch.zeros(512, dtype=torch.int32, device=DEVICE)
    draw_some[(1,)](gradient, found, place, elementwise.seed_of(replace(H, seed=seed)), N=512)
    assert torch.equal(found, as_int32(draw(gradient, place, seed)))


@pytest.mark.parametrize("dtype", CODES, ids=["signed", "unsigned"])
def test_codes_and_sizes_are_those_of_torch(dtype: torch.dtype) -> None:
    n = 16 * BLOCK
    x = values(dtype, n).to(DEVICE)
    x[:BLOCK], x[BLOCK : 2 * BLOCK], x[-9:] = 0.0, x[BLOCK : 2 * BLOCK] * 1e-35, 1e-33
    chance = draw(torch.randn(n, device=DEVICE), 0, 1)
    codes, back = torch.zeros(n, dtype=dtype, device=DEVICE), torch.zeros(n, device=DEVICE)
    sizes = torch.zeros(blocks_of(n), device=DEVICE)
    encode_some[(1,)](x, as_int32(chance), codes, sizes, back, FORMAT=elementwise.language([codes]), N=n)
    wanted, wanted_sizes = encode(x, dtype, chance)
    assert torch.equal(sizes, wanted_sizes)
    assert_codes_agree([codes], [wanted])
    torch.testing.assert_close(back, decode(codes, sizes), rtol=1e-6, atol=0)


def test_24_bits_are_those_of_torch() -> None:
    x = values(torch.int8, 4096).to(DEVICE)
    x[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40])
    chance = draw(x, 0, 1)
    p = torch.zeros(4096, dtype=torch.bfloat16, device=DEVICE)
    c, back = torch.zeros(4096, dtype=torch.int8, device=DEVICE), torch.zeros(4096, device=DEVICE)
    split_some[(1,)](x, as_int32(chance), p, c, back, N=4096)
    wanted_p, wanted_c = split(x, chance)
    assert torch.equal(p.view(torch.int16), wanted_p.view(torch.int16))
    assert torch.equal(c, wanted_c)
    assert torch.equal(back.view(torch.int32), join(p, c).view(torch.int32))
