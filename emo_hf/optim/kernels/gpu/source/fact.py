"""Fact's rule for matrices: gradients divided by the sizes of their rows and columns.

    r̂ = mean of g² over a row + ε           k̂ = mean of g² over a column + ε
    r ← β1·r + (1−β1)·√r̂                    k ← β1·k + (1−β1)·√k̂
    p ← p − decay·p                         p ← p − lr·g/(√r·√k + ε)

Three launches for all matrices: each program of the first adds up a region of one, each of the second makes the sizes
of some rows or columns out of these sums, each of the third moves a region. A region has ROWS·STEPS rows and COLUMNS
columns. Sums of floating point numbers are added up in the same order each time.

Where such elements are to be left out, the means are over those with a finite gradient; a row or column without any
keeps its size.
"""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.source.eight_bits import draw
from emo_hf.optim.kernels.gpu.source.elements import address, is_finite, read, with_compensation, write_parameter


@triton.jit
def region_of(
    table, owners, count, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr
):
    """This program's matrix, its numbers of rows and columns, and the place of the region: its first row, its columns,
    and its place among the regions below and beside each other."""
    program = tl.program_id(0)
    i = tl.load(owners + program)
    rows = tl.load(table + 5 * count + i)
    columns = tl.load(table + 6 * count + i)
    if ALIGNED:
        columns = tl.multiple_of(columns, 16)
    place = program - tl.load(table + 7 * count + i)
    beside = (columns + COLUMNS - 1) // COLUMNS
    below, right = place // beside, place % beside
    return i, rows, columns, below * (ROWS * STEPS), right * COLUMNS + tl.arange(0, COLUMNS), below, right


@triton.jit(do_not_specialize=["count"])
def squares(
    table, owners, count, sums, lacking, left_out,
    G: tl.constexpr, LEAVE_OUT: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Add up g² over the rows and over the columns of a region.

    Args:
        table: addresses of p, g, r, k, the compensation; numbers of rows and of columns; the first program of each
            matrix; where in `sums` those of its rows and those of its columns begin, and the same in `lacking`.
        owners: int32, the matrix of each program.
        sums: float32; regions beside each other have one for each row each, regions below each other one for each
            column each.
        lacking: int32, zeros; grow by the elements of each row and each column that are left out, where LEAVE_OUT.
        left_out: int64, grows by all of these.
    """
    i, rows, columns, top, column, below, right = region_of(table, owners, count, ALIGNED, ROWS, COLUMNS, STEPS)
    g_at = address(table, count + i, G, ALIGNED)
    of_rows = sums + tl.load(table + 8 * count + i) + right * rows
    of_columns = sums + tl.load(table + 9 * count + i) + below * columns
    over_rows = tl.zeros([ROWS, COLUMNS], tl.float32)
    lost = tl.zeros([ROWS, COLUMNS], tl.int32)
    for step in range(STEPS):
        row = top + step * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        g = read(g_at + row[:, None] * columns + column[None, :], inside, True).to(tl.float32)
        if LEAVE_OUT:
            finite = is_finite(g)
            g = tl.where(finite, g, 0.0)
            lost_here = (finite == 0).to(tl.int32)
            lost += lost_here
            in_rows = tl.sum(lost_here, axis=1)
            tl.atomic_add(lacking + tl.load(table + 10 * count + i) + row, in_rows, mask=in_rows > 0)
        squared = g * g
        tl.store(of_rows + row, tl.sum(squared, axis=1), mask=row < rows)
        over_rows += squared
    tl.store(of_columns + column, tl.sum(over_rows, axis=0), mask=column < columns)
    if LEAVE_OUT:
        in_columns = tl.sum(lost, axis=0)
        tl.atomic_add(lacking + tl.load(table + 11 * count + i) + column, in_columns, mask=in_columns > 0)
        some = tl.sum(in_columns, axis=0).to(tl.int64)
        tl.atomic_add(left_out, some, mask=some > 0)


@triton.jit(do_not_specialize=["count"])
def sizes(
    table, owners, count, sums, lacking, beta1, gain1, eps,
    LEAVE_OUT: tl.constexpr, LENGTH: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Make LENGTH elements of r or of k, each out of its shares of a sum.

    Args:
        table: addresses of the sizes; how many they are; of how many elements each is a mean; the first program of
            each; where its sums begin, and how many shares there are of each; where it begins in `lacking`.
        owners: int32, the row of `table` of each program.
        sums, lacking: what `squares` left.
        beta1, gain1, eps: the numbers of the step.
    """
    program = tl.program_id(0)
    i = tl.load(owners + program)
    at = address(table, i, tl.float32, False)
    n = tl.load(table + count + i)
    of = tl.load(table + 2 * count + i)
    j = (program - tl.load(table + 3 * count + i)) * LENGTH + tl.arange(0, LENGTH)
    begin = sums + tl.load(table + 4 * count + i)
    shares = tl.load(table + 5 * count + i)
    total = tl.zeros([SHARES, LENGTH], tl.float32)
    for first in range(0, shares, SHARES):
        share = first + tl.arange(0, SHARES)
        inside = (share < shares)[:, None] & (j < n)[None, :]
        total += tl.load(begin + share[:, None] * n + j[None, :], mask=inside, other=0.0)
    size = tl.load(at + j, mask=j < n, other=0.0)
    there = of + tl.zeros([LENGTH], tl.int64)
    if LEAVE_OUT:
        there -= tl.load(lacking + tl.load(table + 6 * count + i) + j, mask=j < n, other=0)
    mean = tl.sum(total, axis=0) / tl.maximum(there, 1).to(tl.float32)
    new = beta1 * size + gain1 * tl.sqrt(mean + eps)
    tl.store(at + j, tl.where(there > 0, new, size), mask=j < n)


@triton.jit(do_not_specialize=["count", "seed"])
def move(
    table, owners, count, seed, lr, decay, eps,
    P: tl.constexpr, G: tl.constexpr, C: tl.constexpr, COMPENSATED: tl.constexpr, LEAVE_OUT: tl.constexpr,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Move a region, once r and k are known.

    Args:
        table, owners: as `squares` takes them.
        seed, lr, decay, eps: the numbers of the step; the seed is int32, for what is rounded at random.
    """
    i, rows, columns, top, column, _, _ = region_of(table, owners, count, ALIGNED, ROWS, COLUMNS, STEPS)
    p_at = address(table, i, P, ALIGNED)
    g_at = address(table, count + i, G, ALIGNED)
    r_at = address(table, 2 * count + i, tl.float32, False)
    k_at = address(table, 3 * count + i, tl.float32, False)
    c_at = address(table, 4 * count + i, C, ALIGNED)
    root_k = tl.sqrt(tl.load(k_at + column, mask=column < columns, other=1.0))
    for step in range(STEPS):
        row = top + step * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = row[:, None] * columns + column[None, :]
        old_p = read(p_at + at, inside, True)
        g = read(g_at + at, inside, True).to(tl.float32)
        root_r = tl.sqrt(tl.load(r_at + row, mask=row < rows, other=1.0))
        old_c, chance = old_p, g  # where nothing reads them
        if COMPENSATED:
            old_c = read(c_at + at, inside, True)
            if C == tl.int8:  # noqa: SIM300
                chance = draw(g, at, seed)
        p = with_compensation(old_p, old_c, COMPENSATED, C)
        p = p - decay * p - lr * (g / (root_r[:, None] * root_k[None, :] + eps))
        write_parameter(
            p_at + at, c_at + at, p, old_p, old_c, chance, is_finite(g), inside, COMPENSATED, P, C, LEAVE_OUT, True
        )
