"""A kernel is compared with plain torch when it is first used on a device, and left where the two differ.

Both take two steps on copies of the first tensors, the second with a gradient that is not finite where such are to be
left out. It takes milliseconds, once for each rule, format and device, and waits for the device that once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from emo_hf.optim.left_out import LeftOut
from emo_hf.optim.precision.eight_bits import SIZES, blocks_of
from emo_hf.optim.precision.low import in_wide
from emo_hf.optim.state_keys import COMPENSATION
from emo_hf.optim.update import PLAIN, Bucket, Hyperparameters, Implementation, State, StateOfPart, place_of

TENSORS, ELEMENTS = 3, 10 * 4096 + 1
"""How many tensors are compared, and how many elements of each at most: some programs with masks, some without."""

ROUNDING = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6, torch.int8: 0.15, torch.uint8: 0.15}
"""By how much of its size an element may differ after two steps, by what it is kept in."""

COMPENSATED = 1e-4
"""The same for a parameter whose rounding is compensated."""

FLIPS = 1e-3
"""The share of elements that may differ by more: the sign of a sum near 0 is a matter of rounding."""

logger = logging.getLogger(__name__)

_found: dict[tuple[Any, ...], bool] = {}  # rule, device and formats → whether the kernel did what torch does

Cut = Callable[[torch.Tensor, torch.Tensor, State], tuple[torch.Tensor, torch.Tensor, State]]


def is_trusted(
    name: str,
    kernel: Implementation,
    plain: Implementation,
    cut: Cut,
    bucket: Bucket,
    h: Hyperparameters,
) -> bool:
    """Whether a kernel does on this device, with tensors kept as these are, what plain torch does.

    Args:
        name: of what the kernel does.
        kernel, plain: the two implementations.
        cut: copies the beginning of a parameter, its gradient and its state.
        bucket: what is to be moved.
        h: the numbers of the step.
    """
    param, grad, state = next(iter(bucket))
    formats = tuple([(key, value.dtype) for key, value in state.items()])
    key = (name, param.device, param.dtype, grad.dtype, formats, h.left_out is not None)
    if key not in _found:
        first = [of_one for of_one in bucket if _can_be_cut(*of_one)][:TENSORS]
        if not first:
            return True  # nothing to compare; the kernel looks at tensors itself before it moves one
        _found[key] = _agree(kernel, plain, cut, first, h)
        if not _found[key]:
            logger.warning(
                "The Triton kernel for %s differs from plain PyTorch on %s (%s parameters, %s state): PyTorch takes "
                "the steps there, more slowly",
                name, param.device, param.dtype, sorted({str(dtype) for _, dtype in formats}),
            )  # fmt: skip
    return _found[key]


def _can_be_cut(param: torch.Tensor, grad: torch.Tensor, state: State) -> bool:
    return param.numel() > 0 and all(type(tensor) in PLAIN for tensor in (param, grad, *state.values()))


def _agree(kernel: Implementation, plain: Implementation, cut: Cut, first: list[Any], h: Hyperparameters) -> bool:
    from triton.errors import TritonError

    results = []
    for move in (plain, kernel):
        bucket = Bucket.of(cut(*of_one) for of_one in first)
        for step in range(2):
            left_out = None if h.left_out is None else LeftOut()
            if step and left_out is not None:
                bucket.grads[0].view(-1)[0] = float("nan")
            try:
                move(bucket, replace(h, left_out=left_out))
            except TritonError as error:
                logger.warning("a Triton kernel could not be compiled: %s", error)
                return False
            bucket.grads = [grad.flip(0) for grad in bucket.grads]
        results.append(list(bucket))
    return all(_is_rounding(*pair) for pair in zip(*results, strict=True))


def _is_rounding(ours: tuple[Any, Any, State], wanted: tuple[Any, Any, State]) -> bool:
    state = wanted[2]
    p, _, wide = in_wide(*ours)
    wanted_p, _, wanted_wide = in_wide(*wanted)
    by = COMPENSATED if COMPENSATION in state else ROUNDING[wanted[0].dtype]
    pairs = [(p, wanted_p, by), *((wide[key], wanted_wide[key], ROUNDING[state[key].dtype]) for key in wide)]
    for one, other, rounding in pairs:
        size = other[other.isfinite()].abs().max() if bool(other.isfinite().any()) else 0.0
        close = torch.isclose(one.float(), other.float(), rtol=rounding, atol=float(1e-5 * size), equal_nan=True)
        if bool((one.isfinite() != other.isfinite()).any()) or float((~close).sum()) > FLIPS * close.numel():
            return False
    return True


def beginning(param: torch.Tensor, grad: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
    """Copies of the first elements, flat; for rules that are elementwise."""
    n = min(param.numel(), ELEMENTS)

    def copied(tensor: torch.Tensor, count: int = n) -> torch.Tensor:
        return tensor.detach().reshape(-1)[:count].clone()

    kept = {key: copied(value, blocks_of(n) if key.endswith(SIZES) else n) for key, value in state.items()}
    return copied(param), copied(grad), StateOfPart(kept, place_of(state))


def first_rows(param: torch.Tensor, grad: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
    """Copies of the first rows of a matrix, for rules that look at rows and columns."""
    height = param.shape[0]
    rows = max(min(height, ELEMENTS * height // param.numel()), 1)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor[:rows] if tensor.shape[0] == height else tensor).detach().clone()

    return copied(param), copied(grad), {key: copied(value) for key, value in state.items()}
