"""Where elements lie, and their way to float32 and back."""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.available import is_interpreted

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
def write_parameter(
    at, rest_at, x, old, old_rest, finite, inside, C: tl.constexpr, P: tl.constexpr, L: tl.constexpr, M: tl.constexpr
):
    """Write a parameter: rounded to P, and if C (compensated), what rounding took to where that is kept.

    If L (leave out), what is not finite gets the elements back that it had.
    """
    new = rounded(x, P)
    if C:
        rest = rounded(x - new.to(tl.float32), P)
        if L:
            rest = tl.where(finite, rest, old_rest)
        write(rest_at, rest, inside, M)
    if L:
        new = tl.where(finite, new, old)
    write(at, new, inside, M)
