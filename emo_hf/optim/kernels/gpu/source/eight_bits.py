"""The formulas of `precision/eight_bits.py` and of `kernels/formats.h`, with the same bits of chance.

Blocks of SHARING elements share a size s, the largest |x| among them. With y = K·|x|/s and K = 15/16 − d, the code of
an element is made of the bits of y + d above the lower DROPPED, less those of d, and has the sign of x where d is that
of the signed format. Vectors of elements and codes have a multiple of SHARING elements, and sizes one for each block.
"""

import struct

import torch
import triton
import triton.language as tl

from emo_hf.optim.precision.eight_bits import BLOCK, DROPPED_BITS, D


def _upper_bits(x: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", x))[0]) >> DROPPED_BITS


SHARING = tl.constexpr(BLOCK)
DROPPED = tl.constexpr(DROPPED_BITS)
SIGNED_D, UNSIGNED_D = tl.constexpr(D[torch.int8]), tl.constexpr(D[torch.uint8])
SIGNED_D_BITS, UNSIGNED_D_BITS = tl.constexpr(_upper_bits(D[torch.int8])), tl.constexpr(_upper_bits(D[torch.uint8]))


@triton.jit
def scattered(x):
    """32 bits, all of which depend on all of x."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def draw(g, place, seed):
    """Chance for elements of a gradient in float32, at these places of their tensor: 32 bits, the upper the better."""
    of_step = scattered(seed.to(tl.uint32, bitcast=True) * 0x632BE5AB)
    x = g.to(tl.uint32, bitcast=True) * 0x9E3779B1 + (place.to(tl.uint32) * 0xC2B2AE35 + of_step)
    return (x ^ (x >> 15)) * 0x846CA68B


@triton.jit
def for_each(of_block):
    """Numbers of blocks as numbers of their elements."""
    each = tl.broadcast_to(of_block[:, None], [of_block.shape[0], SHARING])
    return tl.reshape(each, [of_block.shape[0] * SHARING])


@triton.jit
def decode(codes, sizes, FORMAT: tl.constexpr):
    """The float32 that codes and sizes stand for."""
    D: tl.constexpr = SIGNED_D if FORMAT == tl.int8 else UNSIGNED_D  # noqa: SIM300
    D_BITS: tl.constexpr = SIGNED_D_BITS if FORMAT == tl.int8 else UNSIGNED_D_BITS  # noqa: SIM300
    code = codes.to(tl.int32)
    y = ((tl.abs(code) + D_BITS) << DROPPED).to(tl.float32, bitcast=True) - D
    x = y * for_each(tl.div_rn(sizes, 0.9375 - D))
    return tl.where(code < 0, -x, x)


@triton.jit
def encode(x, chance, FORMAT: tl.constexpr):
    """Codes and sizes; the upper bits of chance decide between the two codes next to y."""
    D: tl.constexpr = SIGNED_D if FORMAT == tl.int8 else UNSIGNED_D  # noqa: SIM300
    D_BITS: tl.constexpr = SIGNED_D_BITS if FORMAT == tl.int8 else UNSIGNED_D_BITS  # noqa: SIM300
    magnitudes = tl.reshape(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, [x.shape[0] // SHARING, SHARING])
    sizes = tl.max(magnitudes, axis=1).to(tl.float32, bitcast=True)  # in integers, where NaN is larger than all
    by = tl.where(sizes > 1e-30, tl.div_rn(0.9375 - D, tl.maximum(sizes, 1e-30)), 0.0)
    y = tl.abs(x) * for_each(by)
    bits = (y + D).to(tl.uint32, bitcast=True) + (chance >> (32 - DROPPED))
    code = (bits >> DROPPED).to(tl.int32) - D_BITS
    if FORMAT == tl.int8:  # noqa: SIM300
        code = tl.minimum(code, 127)
        code = tl.where(x < 0, -code, code)
    else:
        code = tl.where((code < 1) & (y > 0), 1, tl.minimum(code, 255))
    return code.to(FORMAT), sizes


@triton.jit
def join(p, c):
    """The float32 whose upper 24 bits lie in a bfloat16 and its 8-bit correction."""
    upper = p.to(tl.uint16, bitcast=True).to(tl.uint32) << 8
    return ((upper + c.to(tl.int32).to(tl.uint32, bitcast=True)) << 8).to(tl.float32, bitcast=True)


@triton.jit
def split(x, chance):
    """A bfloat16 and its 8-bit correction for a float32; NaN and infinity stay what they are."""
    bits = x.to(tl.uint32, bitcast=True)
    is_special = (bits & 0x7FFFFFFF) >= 0x7F800000
    kept = tl.where(is_special, bits & 0xFFC00000, bits + (chance >> 24)) >> 8
    low = (kept & 0xFF).to(tl.int32)
    correction = tl.where(low > 127, low - 256, low)
    upper = (kept - correction.to(tl.uint32, bitcast=True)) >> 8
    return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True), correction.to(tl.int8)
