"""The rules that move each element by itself, over many tensors in one launch.

In all of them p is the parameter, a and b (or m and v) are averages that the rule keeps, and h are the numbers of the
step: (lr, decay, 1 − decay, β1, 1 − β1, β2, 1 − β2, ε).
"""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.source.formats import (
    SHARING,
    address,
    draw,
    is_finite,
    read_state,
    with_rest,
    write_parameter,
    write_state,
)


@triton.jit
def signed_step(lr, x):
    """lr·sign(x), which is 0 for ±0 and NaN."""
    return tl.where(x > 0, lr, tl.where(x < 0, -lr, 0.0))


@triton.jit
def navi(p, g, m, v, h):
    """m ← β1·m + (1−β1)·g    v ← β2·v + (1−β2)·g²    p ← p − decay·p    p ← p − lr·m/(√v + ε)"""
    lr, decay, keep, beta1, gain1, beta2, gain2, eps = h
    m = beta1 * m + gain1 * g
    v = beta2 * v + gain2 * g * g
    return p - decay * p - lr * (m / (tl.sqrt(v) + eps)), m, v


@triton.jit
def lynx(p, g, m, b, h):
    """p ← (1 − decay)·p    p ← p − lr·sign(β1·m + (1−β1)·g)    m ← β2·m + (1−β2)·g"""
    lr, decay, keep, beta1, gain1, beta2, gain2, eps = h
    return keep * p - signed_step(lr, beta1 * m + gain1 * g), beta2 * m + gain2 * g, b


@triton.jit
def sign(p, g, a, b, h):
    """p ← p − decay·p    p ← p − lr·sign(g)"""
    lr, decay, keep, beta1, gain1, beta2, gain2, eps = h
    return p - decay * p - signed_step(lr, g), a, b


@triton.jit
def fact_vector(p, g, v, b, h):
    """v ← β1·v + (1−β2)·g²    p ← p − decay·p    p ← p − lr·g/(√v + ε)"""
    lr, decay, keep, beta1, gain1, beta2, gain2, eps = h
    v = beta1 * v + gain2 * g * g
    return p - decay * p - lr * (g / (tl.sqrt(v) + eps)), v, b


@triton.jit
def move_some(
    at, first, n, place, seed, h, MASKED: tl.constexpr,
    RULE: tl.constexpr, CHANCE: tl.constexpr, LEAVE_OUT: tl.constexpr, C: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move BLOCK elements of n, from `first` on; returns 1 for each that is left out.

    An element that is left out keeps all that it has. In codes, that is its state rounded again, because its block may
    have another size: a code stands for a share of it.
    """
    p_at, g_at, a_at, b_at, c_at, a_sizes_at, b_sizes_at = at
    i = first + tl.arange(0, BLOCK)
    block = first // SHARING + tl.arange(0, BLOCK // SHARING)
    if MASKED:
        inside, inside_sizes = i < n, block * SHARING < n
    else:  # the compiler has to know it, or elements are moved one by one
        inside, inside_sizes = tl.full(i.shape, 1, tl.int1), tl.full(block.shape, 1, tl.int1)
    old_p = tl.load(p_at + i, mask=inside, other=0.0)
    g = tl.load(g_at + i, mask=inside, other=0.0).to(tl.float32)
    old_c, chance, old_a, old_b = old_p, g, g, g  # where nothing reads them
    if C is not None:
        old_c = tl.load(c_at + i, mask=inside, other=0.0)
    if CHANCE:
        chance = draw(g, place + i, seed)
    if A is not None:
        old_a = read_state(a_at + i, a_sizes_at + block, inside, inside_sizes, A)
    if B is not None:
        old_b = read_state(b_at + i, b_sizes_at + block, inside, inside_sizes, B)
    p, a, b = RULE(with_rest(old_p, old_c, C), g, old_a, old_b, h)
    moves = is_finite(g) if LEAVE_OUT else tl.full(i.shape, 1, tl.int1)
    write_parameter(p_at + i, c_at + i, p, old_p, old_c, chance, moves, inside, C)
    if A is not None:
        write_state(a_at + i, a_sizes_at + block, tl.where(moves, a, old_a), chance, inside, inside_sizes, A)
    if B is not None:
        write_state(b_at + i, b_sizes_at + block, tl.where(moves, b, old_b), chance, inside, inside_sizes, B)
    return (inside & (moves == 0)).to(tl.int32)


@triton.jit(do_not_specialize=["count", "seed"])
def move(
    table, count, left_out, seed, lr, decay, keep, beta1, gain1, beta2, gain2, eps,
    RULE: tl.constexpr, CHANCE: tl.constexpr, LEAVE_OUT: tl.constexpr,
    P: tl.constexpr, G: tl.constexpr, C: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Move BLOCK·BLOCKS elements of a tensor.

    Args:
        table: for each tensor the addresses of p, g, a, b, the compensation, the sizes of a and of b; its number of
            elements; the place of its first in the parameter of which it is a part; its first program; and after all
            of that the tensor of each program.
        count: of tensors.
        left_out: int64, grows by the elements that are left out, where LEAVE_OUT.
        seed: int32, of the step, for what is rounded at random, where CHANCE.
        lr … eps: the numbers of the step; keep is 1 − decay, gain is 1 − β.
        P, G, C, A, B: formats; None of what there is not.
    """
    program = tl.program_id(0)
    i = tl.load(table + 10 * count + program)
    at = (
        address(table, i, P, ALIGNED),
        address(table, count + i, G, ALIGNED),
        address(table, 2 * count + i, A, ALIGNED),
        address(table, 3 * count + i, B, ALIGNED),
        address(table, 4 * count + i, C, ALIGNED),
        address(table, 5 * count + i, tl.float32, False),
        address(table, 6 * count + i, tl.float32, False),
    )
    n = tl.load(table + 7 * count + i)
    place = tl.load(table + 8 * count + i)
    first = (program - tl.load(table + 9 * count + i)) * (BLOCK * BLOCKS)
    h = (lr, decay, keep, beta1, gain1, beta2, gain2, eps)
    lacking = tl.zeros([BLOCK], tl.int32)
    for block in range(BLOCKS):
        begin = first + block * BLOCK
        if begin + BLOCK <= n:
            lacking += move_some(at, begin, n, place, seed, h, False, RULE, CHANCE, LEAVE_OUT, C, A, B, BLOCK)
        elif begin < n:
            lacking += move_some(at, begin, n, place, seed, h, True, RULE, CHANCE, LEAVE_OUT, C, A, B, BLOCK)
    if LEAVE_OUT:
        some = tl.sum(lacking, axis=0).to(tl.int64)
        tl.atomic_add(left_out, some, mask=some > 0)
