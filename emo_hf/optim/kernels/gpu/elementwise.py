"""Launches the elementwise kernels: one launch for the tensors of one device and dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from emo_hf.optim.kernels.checks import UnfitError
from emo_hf.optim.kernels.gpu.available import kernel, on, works_on
from emo_hf.optim.kernels.gpu.kept import check_kept, has_eight_bits
from emo_hf.optim.kernels.gpu.tables import addresses, are_aligned, begins, check_tensors, owners, table
from emo_hf.optim.kernels.gpu.trust import Cut, beginning, is_trusted
from emo_hf.optim.kernels.launch import PLAINLY, Kept
from emo_hf.optim.left_out import leaving_out, masked
from emo_hf.optim.precision.low import in_float32_if_kept_in_less
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, one_by_one

BLOCK = 1024
"""Elements that a program moves at once, with four warps."""

BLOCKS = 4
"""How often it does."""

SUMMED = 1024
"""Sums that are added up at once."""


def elementwise(
    rule: str,
    keys: Sequence[str],
    otherwise: Implementation,
    *,
    by_norm: Callable[[Hyperparameters], bool] | None = None,
) -> Implementation:
    """An implementation by an elementwise kernel; it leaves out what is to be left out, and knows 16 and 8 bits.

    Args:
        rule: the kernel's name in `source/elementwise.py`.
        keys: names of its state tensors, in its order.
        otherwise: what moves the parameters that the kernels cannot work on.
        by_norm: says of the numbers of a step whether it is scaled by ‖g‖₂ + ε; None for rules that never are.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        states, kept = [bucket.state(key) for key in keys], Kept.of(bucket.states, keys)
        move(rule, bucket.params, bucket.grads, states, h, kept, by_norm=by_norm is not None and by_norm(h))

    def name(h: Hyperparameters) -> str:
        return f"{rule} by norm" if by_norm is not None and by_norm(h) else rule

    careful = leaving_out(otherwise, masked(otherwise))
    plain = in_float32_if_kept_in_less(careful, elementwise=by_norm is None)
    return where_it_fits(run, plain, name=name, cut=beginning)


def where_it_fits(
    run: Implementation, otherwise: Implementation, *, name: Callable[[Hyperparameters], str], cut: Cut
) -> Implementation:
    """`run` for the parameters that the kernels can work on, `otherwise` for the others.

    Args:
        run: looks at all tensors before it moves one, and raises `UnfitError` if one does not fit.
        otherwise: moves what does not fit, and says whether `run` is to be trusted.
        name, cut: as `is_trusted` takes them; the name may depend on the numbers of a step.
    """

    def update(bucket: Bucket, h: Hyperparameters) -> None:
        if not len(bucket):
            return None
        if not works_on(bucket.params[0].device):
            return otherwise(bucket, h)
        try:
            chosen = run if is_trusted(name(h), run, otherwise, cut, bucket, h) else otherwise
            return chosen(bucket, h)
        except UnfitError:
            pass  # and out of this block: errors of what follows are not consequences of this one
        return otherwise(bucket, h) if len(bucket) == 1 else one_by_one(update)(bucket, h)

    return update


def move(
    rule: str,
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    states: Sequence[list[torch.Tensor]],
    h: Hyperparameters,
    kept: Kept = PLAINLY,
    *,
    by_norm: bool = False,
) -> None:
    """Move parameters by an elementwise kernel.

    Args:
        rule: the kernel's name in `source/elementwise.py`.
        params: the parameters, which are moved in place: of one dtype, on one device.
        grads: their gradients.
        states: a list for each state tensor of the rule, with one tensor for each parameter, of its shape.
        h: the numbers of the step; with `left_out`, elements without a finite gradient are left out and counted.
        kept: what belongs to parameters and states in fewer than 32 bits: a compensation in the parameter's dtype, or
            in int8 for bfloat16; the sizes of blocks of states in int8 or uint8; the places of parts of parameters.
        by_norm: whether the step is scaled by ‖g‖₂ + ε of each tensor.

    Raises:
        UnfitError: if the kernels cannot work on a tensor. Nothing has been moved then.
        RuntimeError: if a tensor has another number of elements than its parameter, or no memory.
    """
    of_state = dict(zip(("first_state_tensor", "second_state_tensor"), states, strict=False))
    if kept.compensation is not None:
        of_state["compensation"] = kept.compensation
    check_tensors(parameter=params, gradient=grads, **of_state)
    check_kept(params, states, kept)
    counts = list(map(torch.Tensor.numel, params))
    programs = [-(-count // (BLOCK * BLOCKS)) for count in counts]
    total = sum(programs)
    if not total:
        return
    nothing = [0] * len(params)
    eight_bits = has_eight_bits(states, kept)
    lists = [params, grads, *states, *[None] * (2 - len(states)), kept.compensation]
    places = [nothing if tensors is None else addresses(tensors) for tensors in lists]
    in_eight_bits = []
    if eight_bits:
        of_sizes = [nothing if sizes is None else addresses(sizes) for sizes in [*kept.sizes, None, None][:2]]
        in_eight_bits = [kept.places or nothing, *of_sizes]
    device = params[0].device
    constants = {"ALIGNED": all(map(are_aligned, places)), "LEAVE_OUT": h.left_out is not None, "BLOCKS": BLOCKS}
    formats = {"P": language(params), "G": language(grads), "C": language(kept.compensation or [])}
    with on(device):
        where = table([*places, counts, begins(programs), *in_eight_bits], device)
        of = owners(programs, device), len(params)
        scales = _scales(where, *of, total, grads, h, constants) if by_norm else where
        left_out = where if h.left_out is None else h.left_out.counter(device)
        kernel("elementwise.move")[(total,)](
            where, *of, scales, left_out, seed_of(h),
            h.lr, h.decay, 1 - h.decay, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2, h.eps,
            RULE=rule, STATES=len(states), SCALED=by_norm, COMPENSATED=kept.compensation is not None,
            EIGHT_BITS=eight_bits, A=language(*states[:1]), B=language(*states[1:]), BLOCK=BLOCK,
            **formats, **constants,
        )  # fmt: skip
    torch.autograd.graph.increment_version(params)


def _scales(
    where: torch.Tensor,
    of: torch.Tensor,
    count: int,
    total: int,
    grads: list[torch.Tensor],
    h: Hyperparameters,
    constants: dict[str, Any],
) -> torch.Tensor:
    """‖g‖₂ + ε of each tensor, over what is not left out."""
    sums = torch.empty(total, dtype=torch.float32, device=where.device)
    found = torch.empty(count, dtype=torch.float32, device=where.device)
    kernel("norms.squares")[(total,)](where, of, count, sums, G=language(grads), BLOCK=BLOCK, **constants)
    kernel("norms.scales")[(count,)](where, count, total, sums, found, h.eps, BLOCK=SUMMED)
    return found


def seed_of(h: Hyperparameters) -> int:
    """The seed of a step, of which 32 bits count, as an int32: a kernel for larger ones would be another."""
    return (h.seed + 2**31) % 2**32 - 2**31


def language(tensors: Sequence[torch.Tensor] = ()) -> Any:
    """The dtype of a list of tensors in Triton's language; of an empty one it does not matter."""
    return _language(tensors[0].dtype if tensors else torch.float32)


@functools.cache
def _language(dtype: torch.dtype) -> Any:
    import triton.language as tl

    floats = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return {**floats, torch.int8: tl.int8, torch.uint8: tl.uint8}[dtype]
