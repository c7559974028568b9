"""The rules that move each element by itself, over many tensors in one launch.

In all of them m and v are averages that the rule keeps, p ← … is the parameter, and an element without a finite
gradient keeps all of these, if such are to be left out.
"""

import triton
import triton.language as tl

from emo_hf.optim.kernels.gpu.source.elements import address, is_finite, read, rounded, write, write_parameter


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
    p_at, g_at, a_at, b_at, c_at, inside, scale, lr, decay, keep, beta1, gain1, beta2, gain2, eps,
    RULE: tl.constexpr, STATES: tl.constexpr, SCALED: tl.constexpr, COMPENSATED: tl.constexpr, LEAVE_OUT: tl.constexpr,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Move as many elements as there are addresses; returns 1 for each that is left out."""
    old_p = read(p_at, inside, MASKED)
    g = read(g_at, inside, MASKED).to(tl.float32)
    p = old_p.to(tl.float32)
    old_c = old_p
    if COMPENSATED:
        old_c = read(c_at, inside, MASKED)
        p += old_c.to(tl.float32)
    finite = is_finite(g)
    if STATES > 0:
        old_a = read(a_at, inside, MASKED)
        a = old_a.to(tl.float32)
    if STATES > 1:
        old_b = read(b_at, inside, MASKED)
        b = old_b.to(tl.float32)
    if RULE == "navi":
        p, a, b = navi(p, g, a, b, lr, decay, beta1, gain1, beta2, gain2, eps)
    elif RULE == "lynx":
        p, a = lynx(p, g, a, lr, keep, beta1, gain1, beta2, gain2)
    elif RULE == "sign":
        p = sign(p, g, lr, decay)
    elif RULE == "fact_vector":
        p, a = fact_vector(p, g, a, lr, decay, beta1, gain2, eps)
    else:
        tl.static_assert(RULE == "neco", "no such rule")
        p, a = neco(p, g, a, scale, lr, keep, beta1, gain1, beta2, gain2, SCALED)
    write_parameter(p_at, c_at, p, old_p, old_c, finite, inside, COMPENSATED, P, LEAVE_OUT, MASKED)
    if STATES > 0:
        new_a = rounded(a, A)
        if LEAVE_OUT:
            new_a = tl.where(finite, new_a, old_a)
        write(a_at, new_a, inside, MASKED)
    if STATES > 1:
        new_b = rounded(b, B)
        if LEAVE_OUT:
            new_b = tl.where(finite, new_b, old_b)
        write(b_at, new_b, inside, MASKED)
    return (inside & (finite == 0)).to(tl.int32)


@triton.jit(do_not_specialize=["count"])
def move(
    table, owners, count, scales, left_out, lr, decay, keep, beta1, gain1, beta2, gain2, eps,
    RULE: tl.constexpr, STATES: tl.constexpr, SCALED: tl.constexpr, COMPENSATED: tl.constexpr, LEAVE_OUT: tl.constexpr,
    P: tl.constexpr, G: tl.constexpr, A: tl.constexpr, B: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Move BLOCK·BLOCKS elements of a tensor.

    Args:
        table: addresses of p, g, the first and the second state tensor, the compensation; numbers of elements; the
            first program of each tensor.
        owners: int32, the tensor of each program.
        scales: float32, one for each tensor, where the rule is SCALED.
        left_out: int64, grows by the elements that are left out, where LEAVE_OUT.
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
    c_at = address(table, 4 * count + i, P, ALIGNED)
    scale = 1.0
    if SCALED:
        scale = tl.load(scales + i)
    lacking = tl.zeros([BLOCK], tl.int32)
    if first + BLOCK * BLOCKS <= n:  # without masks, or the elements would be moved one by one
        for block in range(BLOCKS):
            at = first + block * BLOCK + tl.arange(0, BLOCK)
            lacking += move_some(
                p_at + at, g_at + at, a_at + at, b_at + at, c_at + at, at < n, scale,
                lr, decay, keep, beta1, gain1, beta2, gain2, eps,
                RULE, STATES, SCALED, COMPENSATED, LEAVE_OUT, P, A, B, False,
            )  # fmt: skip
    else:
        for block in range(BLOCKS):
            at = first + block * BLOCK + tl.arange(0, BLOCK)
            lacking += move_some(
                p_at + at, g_at + at, a_at + at, b_at + at, c_at + at, at < n, scale,
                lr, decay, keep, beta1, gain1, beta2, gain2, eps,
                RULE, STATES, SCALED, COMPENSATED, LEAVE_OUT, P, A, B, True,
            )  # fmt: skip
    if LEAVE_OUT:
        some = tl.sum(lacking, axis=0).to(tl.int64)
        tl.atomic_add(left_out, some, mask=some > 0)
