"""Where elements lie, and their way to float32 and back."""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.available import is_interpreted
from emo_hf.optim.kernels.gpu.source.eight_bits import decode, encode, join, split

BY_BITS = tl.constexpr(is_interpreted())
"""Triton's interpreter cuts off the bits that a bfloat16 lacks; a GPU rounds."""


@triton.jit
def address(table, at, FORMAT: tl.constexpr, ALIGNED: tl.constexpr):
    """The address at a place of a table, as one of elements of a format.

    ALIGNED promises that it is a multiple of 16 bytes; a thread then moves that many at once.
    """
    found = tl.load(table + at).to(tl.pointer_type(FORMAT))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def read(at, inside, MASKED: tl.constexpr):
    """Elements as they lie in memory; 0 for those that are not inside. Without MASKED all are."""
    return tl.load(at, mask=inside, other=0.0) if MASKED else tl.load(at)


@triton.jit
def write(at, x, inside, MASKED: tl.constexpr):
    """Put elements where `read` would find them."""
    if MASKED:
        tl.store(at, x, mask=inside)
    else:
        tl.store(at, x)


@triton.jit
def rounded(x, FORMAT: tl.constexpr):
    """A float32 to the nearest number of a format, ties to even."""
    if FORMAT == tl.float32:  # noqa: SIM300
        found = x
    elif BY_BITS and FORMAT == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        found = tl.where(x == x, upper, 0x7FC0).to(tl.uint16).to(FORMAT, bitcast=True)
    else:
        found = x.to(FORMAT)
    return found


@triton.jit
def is_finite(g):
    """Whether a number is neither NaN nor infinite."""
    return tl.abs(g) < float("inf")


@triton.jit
def read_state(at, sizes_at, inside, inside_sizes, FORMAT: tl.constexpr, MASKED: tl.constexpr):
    """Elements of a state tensor in float32; the sizes of their blocks are read where they are codes."""
    kept = read(at, inside, MASKED)
    if FORMAT == tl.int8 or FORMAT == tl.uint8:  # noqa: SIM300
        x = decode(kept, read(sizes_at, inside_sizes, MASKED), FORMAT)
    else:
        x = kept.to(tl.float32)
    return x


@triton.jit
def write_state(
    at, sizes_at, x, old, chance, finite, inside, inside_sizes,
    FORMAT: tl.constexpr, LEAVE_OUT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Put elements where `read_state` found `old`; with LEAVE_OUT, what is not finite gets that back.

    In codes, that is `old` rounded again, because its block may have another size: a code stands for a share of it.
    """
    if LEAVE_OUT:
        x = tl.where(finite, x, old)
    if FORMAT == tl.int8 or FORMAT == tl.uint8:  # noqa: SIM300
        codes, sizes = encode(x, chance, FORMAT)
        write(at, codes, inside, MASKED)
        write(sizes_at, sizes, inside_sizes, MASKED)
    else:
        write(at, rounded(x, FORMAT), inside, MASKED)


@triton.jit
def with_compensation(p, c, COMPENSATED: tl.constexpr, C: tl.constexpr):
    """A parameter in float32. C is the format of its compensation: 8 bits, or that of the parameter."""
    if COMPENSATED and C == tl.int8:  # noqa: SIM300
        x = join(p, c)
    elif COMPENSATED:
        x = p.to(tl.float32) + c.to(tl.float32)
    else:
        x = p.to(tl.float32)
    return x


@triton.jit
def write_parameter(
    at, rest_at, x, old, old_rest, chance, finite, inside,
    COMPENSATED: tl.constexpr, P: tl.constexpr, C: tl.constexpr, LEAVE_OUT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write a parameter rounded to P, and if COMPENSATED, what rounding took to where that is kept, in C.

    With LEAVE_OUT, what is not finite gets the elements back that it had.
    """
    if COMPENSATED and C == tl.int8:  # noqa: SIM300
        new, rest = split(x, chance)
    else:
        new = rounded(x, P)
        if COMPENSATED:
            rest = rounded(x - new.to(tl.float32), C)
    if COMPENSATED:
        if LEAVE_OUT:
            rest = tl.where(finite, rest, old_rest)
        write(rest_at, rest, inside, MASKED)
    if LEAVE_OUT:
        new = tl.where(finite, new, old)
    write(at, new, inside, MASKED)
