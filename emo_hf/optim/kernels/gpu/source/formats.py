"""Where elements lie, and their way to float32 and back: in 32, 24, 16 and 8 bits.

The formats of 8 and 24 bits are those of `precision/eight_bits.py` and of `kernels/formats.h`, with the same bits of
chance. Blocks of SHARING elements share a size; vectors of elements and codes have a multiple of SHARING elements.
"""

import torch
import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.available import is_interpreted
from emo_hf.optim.precision.eight_bits import BLOCK, D_BITS, DROPPED_BITS, D

BY_BITS = tl.constexpr(is_interpreted())
"""Triton's interpreter cuts off the bits that a bfloat16 lacks; a GPU rounds."""

SHARING, DROPPED = tl.constexpr(BLOCK), tl.constexpr(DROPPED_BITS)
SIGNED_D, UNSIGNED_D = tl.constexpr(D[torch.int8]), tl.constexpr(D[torch.uint8])
SIGNED_D_BITS, UNSIGNED_D_BITS = tl.constexpr(D_BITS[torch.int8]), tl.constexpr(D_BITS[torch.uint8])


@triton.jit
def add_one(x):
    """x[0] ← x[0] + 1: the least that can be compiled and launched, to see whether that works."""
    tl.store(x, tl.load(x) + 1)


@triton.jit
def address(table, at, FORMAT: tl.constexpr, ALIGNED: tl.constexpr):
    """The address at a place of a table, as one of elements of a format; None is for what nothing reads.

    ALIGNED promises that it is a multiple of 16 bytes; a thread then moves that many at once.
    """
    found = tl.load(table + at).to(tl.pointer_type(tl.float32 if FORMAT is None else FORMAT))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def is_finite(g):
    """Whether a number is neither NaN nor infinite."""
    return tl.abs(g) < float("inf")


@triton.jit
def rounded(x, FORMAT: tl.constexpr):
    """A float32 to the nearest number of a format, ties to even."""
    if BY_BITS and tl.bfloat16 == FORMAT:
        bits = x.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        found = tl.where(x == x, upper, 0x7FC0).to(tl.uint16).to(FORMAT, bitcast=True)
    else:
        found = x.to(FORMAT)
    return found


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
    D: tl.constexpr = SIGNED_D if tl.int8 == FORMAT else UNSIGNED_D
    D_BITS: tl.constexpr = SIGNED_D_BITS if tl.int8 == FORMAT else UNSIGNED_D_BITS
    code = codes.to(tl.int32)
    y = ((tl.abs(code) + D_BITS) << DROPPED).to(tl.float32, bitcast=True) - D
    x = y * for_each(tl.div_rn(sizes, 0.9375 - D))
    return tl.where(code < 0, -x, x)


@triton.jit
def encode(x, chance, FORMAT: tl.constexpr):
    """Codes and sizes; the upper bits of chance decide between the two codes next to y."""
    D: tl.constexpr = SIGNED_D if tl.int8 == FORMAT else UNSIGNED_D
    D_BITS: tl.constexpr = SIGNED_D_BITS if tl.int8 == FORMAT else UNSIGNED_D_BITS
    magnitudes = tl.reshape(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, [x.shape[0] // SHARING, SHARING])
    sizes = tl.max(magnitudes, axis=1).to(tl.float32, bitcast=True)  # in integers, where NaN is larger than all
    by = tl.where(sizes > 1e-30, tl.div_rn(0.9375 - D, tl.maximum(sizes, 1e-30)), 0.0)
    y = tl.abs(x) * for_each(by)
    bits = (y + D).to(tl.uint32, bitcast=True) + (chance >> (32 - DROPPED))
    code = (bits >> DROPPED).to(tl.int32) - D_BITS
    if tl.int8 == FORMAT:
        code = tl.minimum(code, 127)
        code = tl.where(x < 0, -code, code)
    else:
        code = tl.where((code < 1) & (y > 0), 1, tl.minimum(code, 255))
    return code.to(FORMAT), sizes


@triton.jit
def read_state(at, sizes_at, inside, inside_sizes, FORMAT: tl.constexpr):
    """Elements of a state tensor in float32, 0 beyond it; the sizes of their blocks are read where they are codes."""
    kept = tl.load(at, mask=inside, other=0.0)
    if tl.int8 == FORMAT or tl.uint8 == FORMAT:
        x = decode(kept, tl.load(sizes_at, mask=inside_sizes, other=0.0), FORMAT)
    else:
        x = kept.to(tl.float32)
    return x


@triton.jit
def write_state(at, sizes_at, x, chance, inside, inside_sizes, FORMAT: tl.constexpr):
    """Put elements where `read_state` found them."""
    if tl.int8 == FORMAT or tl.uint8 == FORMAT:
        codes, sizes = encode(x, chance, FORMAT)
        tl.store(at, codes, mask=inside)
        tl.store(sizes_at, sizes, mask=inside_sizes)
    else:
        tl.store(at, rounded(x, FORMAT), mask=inside)


@triton.jit
def with_rest(p, rest, C: tl.constexpr):
    """A parameter in float32. C is the format of what rounding took from it: 8 bits, its own, or None for nothing."""
    if C is None:
        x = p.to(tl.float32)
    elif tl.int8 == C:  # the upper 24 bits of a float32 lie in a bfloat16 and its 8-bit correction
        upper = p.to(tl.uint16, bitcast=True).to(tl.uint32) << 8
        x = ((upper + rest.to(tl.int32).to(tl.uint32, bitcast=True)) << 8).to(tl.float32, bitcast=True)
    else:
        x = p.to(tl.float32) + rest.to(tl.float32)
    return x


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


@triton.jit
def write_parameter(at, rest_at, x, old, old_rest, chance, moves, inside, C: tl.constexpr):
    """Write a parameter rounded to the format that it had, and what rounding took to where that is kept.

    What does not move gets the elements back that it had.
    """
    if C is None:
        new = rounded(x, old.dtype)
    elif tl.int8 == C:
        new, rest = split(x, chance)
    else:
        new = rounded(x, old.dtype)
        rest = rounded(x - new.to(tl.float32), C)
    tl.store(at, tl.where(moves, new, old), mask=inside)
    if C is not None:
        tl.store(rest_at, tl.where(moves, rest, old_rest), mask=inside)
