"""‖g‖₂ of many tensors. What is added up is added up in the same order each time."""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.source.elements import address, is_finite, read


@triton.jit
def square(at, inside, LEAVE_OUT: tl.constexpr, MASKED: tl.constexpr):
    """g², and 0 for what is not inside or left out."""
    g = read(at, inside, MASKED).to(tl.float32)
    if LEAVE_OUT:
        g = tl.where(is_finite(g), g, 0.0)
    return g * g


@triton.jit(do_not_specialize=["count"])
def squares(
    table, owners, count, sums,
    G: tl.constexpr, LEAVE_OUT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """sums[program] ← Σg² over BLOCK·BLOCKS elements of a tensor; without what is not finite, where LEAVE_OUT.

    Args:
        table, owners: as `elementwise.move` takes them.
        sums: float32, one for each program.
    """
    program = tl.program_id(0)
    i = tl.load(owners + program)
    n = tl.load(table + 5 * count + i)
    first = (program - tl.load(table + 6 * count + i)) * (BLOCK * BLOCKS)
    g_at = address(table, count + i, G, ALIGNED)
    total = tl.zeros([BLOCK], tl.float32)
    if first + BLOCK * BLOCKS <= n:  # without masks, or the elements would be read one by one
        for block in range(BLOCKS):
            at = first + block * BLOCK + tl.arange(0, BLOCK)
            total += square(g_at + at, at < n, LEAVE_OUT, False)
    else:
        for block in range(BLOCKS):
            at = first + block * BLOCK + tl.arange(0, BLOCK)
            total += square(g_at + at, at < n, LEAVE_OUT, True)
    tl.store(sums + program, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["count", "programs"])
def scales(table, count, programs, sums, found, eps, BLOCK: tl.constexpr):
    """found[i] ← ‖g‖₂ + ε of tensor i, out of the sums of its programs.

    Args:
        table: as `elementwise.move` takes it.
        programs: how many there are in all.
        sums: what `squares` left.
        found: float32, one for each tensor.
    """
    i = tl.program_id(0)
    begin = tl.load(table + 6 * count + i)
    end = programs.to(tl.int64)
    if i + 1 < count:
        end = tl.load(table + 6 * count + i + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(begin, end, BLOCK):
        j = at + tl.arange(0, BLOCK)
        total += tl.load(sums + j, mask=j < end, other=0.0)
    tl.store(found + i, tl.sqrt(tl.sum(total, axis=0)) + eps)
