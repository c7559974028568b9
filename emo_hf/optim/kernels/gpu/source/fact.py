"""Fact's rule for matrices: gradients divided by the sizes of their rows and columns.

    r̂ = mean of g² over a row + ε           k̂ = mean of g² over a column + ε
    r ← β1·r + (1−β1)·√r̂                    k ← β1·k + (1−β1)·√k̂
    p ← p − decay·p                         p ← p − lr·g/(√r·√k + ε)

Three launches for all matrices: each program of the first adds up a region of one, each of the second makes the sizes
of some rows or columns out of these sums, each of the third moves a region. A region has ROWS·STEPS rows and COLUMNS
columns. Sums are taken in the same order each time.

Where such elements are to be left out, the means are over those with a finite gradient; a row or column without any
keeps its size.
"""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.source.formats import address, draw, is_finite, with_rest, write_parameter


@triton.jit
def region_of(table, count, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr):
    """This program's matrix, its numbers of rows and columns, and the place of the region: its first row, its columns,
    and its place among the regions below and beside each other."""
    program = tl.program_id(0)
    i = tl.load(table + 10 * count + program)
    rows = tl.load(table + 5 * count + i)
    columns = tl.load(table + 6 * count + i)
    if ALIGNED:
        columns = tl.multiple_of(columns, 16)
    place = program - tl.load(table + 9 * count + i)
    beside = (columns + COLUMNS - 1) // COLUMNS
    below, right = place // beside, place % beside
    return i, rows, columns, below * (ROWS * STEPS), right * COLUMNS + tl.arange(0, COLUMNS), below, right


@triton.jit(do_not_specialize=["count", "total"])
def squares(
    table, count, sums, total, left_out, G: tl.constexpr, LEAVE_OUT: tl.constexpr,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Add up g² over the rows and over the columns of a region.

    Args:
        table: for each matrix the addresses of p, g, r, k, the compensation; its numbers of rows and of columns; where
            in `sums` those of its rows and those of its columns begin; its first program; and after all of that the
            matrix of each program.
        count: of matrices.
        sums: float32; regions beside each other have one for each row each, regions below each other one for each
            column each. `total` elements further, where LEAVE_OUT: how many elements are not in it.
        left_out: int64, grows by all of these.
    """
    i, rows, columns, top, column, below, right = region_of(table, count, ALIGNED, ROWS, COLUMNS, STEPS)
    g_at = address(table, count + i, G, ALIGNED)
    of_rows = sums + tl.load(table + 7 * count + i) + right * rows
    of_columns = sums + tl.load(table + 8 * count + i) + below * columns + column
    over_rows = tl.zeros([ROWS, COLUMNS], tl.float32)
    lost = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        row = top + step * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        g = tl.load(g_at + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if LEAVE_OUT:
            lost_here = tl.where(is_finite(g), 0.0, 1.0)
            g = tl.where(is_finite(g), g, 0.0)
            tl.store(of_rows + total + row, tl.sum(lost_here, axis=1), mask=row < rows)
            lost += lost_here
        tl.store(of_rows + row, tl.sum(g * g, axis=1), mask=row < rows)
        over_rows += g * g
    tl.store(of_columns, tl.sum(over_rows, axis=0), mask=column < columns)
    if LEAVE_OUT:
        in_columns = tl.sum(lost, axis=0)
        tl.store(of_columns + total, in_columns, mask=column < columns)
        some = tl.sum(in_columns, axis=0).to(tl.int64)
        tl.atomic_add(left_out, some, mask=some > 0)


@triton.jit(do_not_specialize=["count", "total"])
def sizes(
    table, count, sums, total, beta1, gain1, eps, LEAVE_OUT: tl.constexpr, LENGTH: tl.constexpr, SHARES: tl.constexpr
):
    """Make LENGTH elements of r or of k, each out of its shares of a sum.

    Args:
        table: for each r and each k its address; how many sizes it has; of how many elements each is a mean; where its
            sums begin; how many shares there are of each; its first program; and after all of that whose each is.
        count: of r and k together.
        sums, total: what `squares` left.
        beta1, gain1, eps: the numbers of the step.
    """
    program = tl.program_id(0)
    i = tl.load(table + 6 * count + program)
    n = tl.load(table + count + i)
    begin = sums + tl.load(table + 3 * count + i)
    shares = tl.load(table + 4 * count + i)
    j = (program - tl.load(table + 5 * count + i)) * LENGTH + tl.arange(0, LENGTH)
    added = tl.zeros([SHARES, LENGTH], tl.float32)
    lost = tl.zeros([SHARES, LENGTH], tl.float32)
    for first in range(0, shares, SHARES):
        share = first + tl.arange(0, SHARES)
        inside = (share < shares)[:, None] & (j < n)[None, :]
        here = begin + share[:, None] * n + j[None, :]
        added += tl.load(here, mask=inside, other=0.0)
        if LEAVE_OUT:
            lost += tl.load(here + total, mask=inside, other=0.0)
    there = tl.load(table + 2 * count + i).to(tl.float32) - tl.sum(lost, axis=0)
    at = address(table, i, tl.float32, False) + j
    size = tl.load(at, mask=j < n, other=0.0)
    new = beta1 * size + gain1 * tl.sqrt(tl.sum(added, axis=0) / tl.maximum(there, 1.0) + eps)
    tl.store(at, tl.where(there > 0, new, size), mask=j < n)


@triton.jit(do_not_specialize=["count", "seed"])
def move(
    table, count, seed, lr, decay, eps,
    P: tl.constexpr, G: tl.constexpr, C: tl.constexpr, LEAVE_OUT: tl.constexpr,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Move a region, once r and k are known.

    Args:
        table, count: as `squares` takes them.
        seed, lr, decay, eps: the numbers of the step; the seed is int32, for what is rounded at random.
        C: the format of the compensation, or None.
    """
    i, rows, columns, top, column, _, _ = region_of(table, count, ALIGNED, ROWS, COLUMNS, STEPS)
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
        old_p = tl.load(p_at + at, mask=inside, other=0.0)
        g = tl.load(g_at + at, mask=inside, other=0.0).to(tl.float32)
        root_r = tl.sqrt(tl.load(r_at + row, mask=row < rows, other=1.0))
        old_c, chance = old_p, g  # where nothing reads them
        if C is not None:
            old_c = tl.load(c_at + at, mask=inside, other=0.0)
            chance = draw(g, at, seed)
        p = with_rest(old_p, old_c, C)
        p = p - decay * p - lr * (g / (root_r[:, None] * root_k[None, :] + eps))
        moves = is_finite(g) if LEAVE_OUT else inside
        write_parameter(p_at + at, c_at + at, p, old_p, old_c, chance, moves, inside, C)
