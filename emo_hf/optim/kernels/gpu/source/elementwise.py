"""The rules that move each element by itself, over many tensors in one launch.

In all of them m and v are averages that the rule keeps, p ← … is the parameter, and an element without a finite
gradient keeps all of these, if such are to be left out.
"""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.source.eight_bits import SHARING, draw
from emo_hf.optim.kernels.gpu.source.elements import (
    address,
    is_finite,
    read,
    read_state,
    with_compensation,
    write_parameter,
    write_state,
)


@triton.jit
def signed_step(lr, x):
    """lr·sign(x), which is 0 for ±0 and NaN."""
    return tl.where(x > 0, lr, tl.where(x < 0, -lr, 0.0))


@triton.jit
def navi(p, g, m, v, lr, decay, beta1, gain1, beta2, gain2, eps):
    """m ← β1·m + (1−β1)·g    v ← β2·v + (1−β2)·g²    p ← p − decay·p    p ← p − lr·m/(√v + ε)"""
    m = beta1 * m + gain1 * g
    v = beta2 * v + gain2 * g * g
    return p - decay * p - lr * (m / (tl.sqrt(v) + eps)), m, v


@triton.jit
def lynx(p, g, m, lr, keep, beta1, gain1, beta2, gain2):
    """p ← (1 − decay)·p    p ← p − lr·sign(β1·m + (1−β1)·g)    m ← β2·m + (1−β2)·g"""
    blend = beta1 * m + gain1 * g
    return keep * p - signed_step(lr, blend), beta2 * m + gain2 * g


@triton.jit
def sign(p, g, lr, decay):
    """p ← p − decay·p    p ← p − lr·sign(g)"""
    return p - decay * p - signed_step(lr, g)


@triton.jit
def fact_vector(p, g, v, lr, decay, beta1, gain2, eps):
    """v ← β1·v + (1−β2)·g²    p ← p − decay·p    p ← p − lr·g/(√v + ε)"""
    v = beta1 * v + gain2 * g * g
    return p - decay * p - lr * (g / (tl.sqrt(v) + eps)), v


@triton.jit
def neco(p, g, m, scale, lr, keep, beta1, gain1, beta2, gain2, SCALED: tl.constexpr):
    """p ← (1 − decay)·p    b = (1−β1)·g + β1·m

    SCALED, with a scale s:   p ← p − lr·s·b/(1+|b|)
    otherwise:                p ← p − lr·d,    d = sign(b) where sign(b) = sign(g), else 0

    m ← β2·m + (1−β2)·g
    """
    b = gain1 * g + beta1 * m
    if SCALED:
        step = lr * scale * (b / (1 + tl.abs(b)))
    else:
        step = tl.where(b > 0, tl.where(g > 0, lr, 0.0), tl.where(b < 0, tl.where(g < 0, -lr, 0.0), 0.0))
    return keep * p - step, beta2 * m + gain2 * g


@triton.jit
def move_some(
    p_at, g_at, a_at, b_at, c_at, a_sizes_at, b_sizes_at, first, n, place, scale, seed,
    lr, decay, keep, beta1, gain1, beta2, gain2, eps,
    RULE: tl.constexpr, STATES: tl.constexpr, SCALED: tl.constexpr, COMPENSATED: tl.constexpr,
    EIGHT_BITS: tl.constexpr, LEAVE_OUT: tl.constexpr, P: tl.constexpr, C: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Move BLOCK elements of n, from `first` on; returns 1 for each that is left out.

    The first of the n has this place in its parameter.
    """
    at = first + tl.arange(0, BLOCK)
    inside = at < n
    old_p = read(p_at + at, inside, MASKED)
    g = read(g_at + at, inside, MASKED).to(tl.float32)
    finite = is_finite(g)
    old_c = old_p
    if COMPENSATED:
        old_c = read(c_at + at, inside, MASKED)
    p = with_compensation(old_p, old_c, COMPENSATED, C)
    chance, sizes_at, inside_sizes = g, at, inside  # where nothing reads them
    if EIGHT_BITS:
        chance = draw(g, place + at, seed)
        sizes_at = first // SHARING + tl.arange(0, BLOCK // SHARING)
        inside_sizes = sizes_at * SHARING < n
    if STATES > 0:
        old_a = read_state(a_at + at, a_sizes_at + sizes_at, inside, inside_sizes, A, MASKED)
    if STATES > 1:
        old_b = read_state(b_at + at, b_sizes_at + sizes_at, inside, inside_sizes, B, MASKED)
    if RULE == "navi":
        p, a, b = navi(p, g, old_a, old_b, lr, decay, beta1, gain1, beta2, gain2, eps)
    elif RULE == "lynx":
        p, a = lynx(p, g, old_a, lr, keep, beta1, gain1, beta2, gain2)
    elif RULE == "sign":
        p = sign(p, g, lr, decay)
    elif RULE == "fact_vector":
        p, a = fact_vector(p, g, old_a, lr, decay, beta1, gain2, eps)
    else:
        tl.static_assert(RULE == "neco", "no such rule")
        p, a = neco(p, g, old_a, scale, lr, keep, beta1, gain1, beta2, gain2, SCALED)
    write_parameter(
        p_at + at, c_at + at, p, old_p, old_c, chance, finite, inside, COMPENSATED, P, C, LEAVE_OUT, MASKED
    )
    if STATES > 0:
        write_state(
            a_at + at, a_sizes_at + sizes_at, a, old_a, chance, finite, inside, inside_sizes, A, LEAVE_OUT, MASKED
        )
    if STATES > 1:
        write_state(
            b_at + at, b_sizes_at + sizes_at, b, old_b, chance, finite, inside, inside_sizes, B, LEAVE_OUT, MASKED
        )
    return (inside & (finite == 0)).to(tl.int32)


@triton.jit(do_not_specialize=["count", "seed"])
def move(
    table, owners, count, scales, left_out, seed, lr, decay, keep, beta1, gain1, beta2, gain2, eps,
    RULE: tl.constexpr, STATES: tl.constexpr, SCALED: tl.constexpr, COMPENSATED: tl.constexpr,
    EIGHT_BITS: tl.constexpr, LEAVE_OUT: tl.constexpr, P: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Move BLOCK·BLOCKS elements of a tensor.

    Args:
        table: addresses of p, g, the first and the second state tensor, the compensation; numbers of elements; the
            first program of each tensor; and with EIGHT_BITS, which is whether anything is kept in them, the places of
            the tensors' first elements in the parameters of which they are parts, and addresses of the sizes of the
            first and of the second state tensor.
        owners: int32, the tensor of each program.
        scales: float32, one for each tensor, where the rule is SCALED.
        left_out: int64, grows by the elements that are left out, where LEAVE_OUT.
        seed: int32, of the step, for what is rounded at random.
        lr … eps: the numbers of the step; keep is 1 − decay, gain is 1 − β.
    """
    program = tl.program_id(0)
    i = tl.load(owners + program)
    n = tl.load(table + 5 * count + i)
    first = (program - tl.load(table + 6 * count + i)) * (BLOCK * BLOCKS)
    p_at = address(table, i, P, ALIGNED)
    g_at = address(table, count + i, G, ALIGNED)
    a_at = address(table, 2 * count + i, A, ALIGNED)
    b_at = address(table, 3 * count + i, B, ALIGNED)
    c_at = address(table, 4 * count + i, C, ALIGNED)
    a_sizes_at, b_sizes_at, place = a_at, b_at, n  # where nothing reads them
    if EIGHT_BITS:
        place = tl.load(table + 7 * count + i)
        a_sizes_at = address(table, 8 * count + i, tl.float32, False)
        b_sizes_at = address(table, 9 * count + i, tl.float32, False)
    scale = 1.0
    if SCALED:
        scale = tl.load(scales + i)
    lacking = tl.zeros([BLOCK], tl.int32)
    if first + BLOCK * BLOCKS <= n:  # without masks, or the elements would be moved one by one
        for block in range(BLOCKS):
            lacking += move_some(
                p_at, g_at, a_at, b_at, c_at, a_sizes_at, b_sizes_at, first + block * BLOCK, n, place, scale, seed,
                lr, decay, keep, beta1, gain1, beta2, gain2, eps,
                RULE, STATES, SCALED, COMPENSATED, EIGHT_BITS, LEAVE_OUT, P, C, A, B, BLOCK, False,
            )  # fmt: skip
    else:
        for block in range(BLOCKS):
            lacking += move_some(
                p_at, g_at, a_at, b_at, c_at, a_sizes_at, b_sizes_at, first + block * BLOCK, n, place, scale, seed,
                lr, decay, keep, beta1, gain1, beta2, gain2, eps,
                RULE, STATES, SCALED, COMPENSATED, EIGHT_BITS, LEAVE_OUT, P, C, A, B, BLOCK, True,
            )  # fmt: skip
    if LEAVE_OUT:
        some = tl.sum(lacking, axis=0).to(tl.int64)
        tl.atomic_add(left_out, some, mask=some > 0)
