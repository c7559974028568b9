"""A kernel is compared with plain torch when it is first used on a device, and left where the two differ.

Both take two steps on copies of the first tensors, the second with a gradient that is not finite where such are to be
left out. It takes milliseconds, once for each rule, format and device, and waits for the device that once.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from emo_hf.optim.kernels.gpu.available import works_on
from emo_hf.optim.kernels.tensors import UnfitError, where_it_fits
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


def if_trusted(name: str, kernel: Implementation, plain: Implementation, *, by_rows: bool) -> Implementation:
    """`kernel` for what it can work on, where it does what plain torch does; `plain` for everything else.

    Args:
        name: of the kernel.
        kernel: looks at all tensors before it moves one, and raises `UnfitError` if one does not fit.
        plain: the same in torch.
        by_rows: whether it looks at rows and columns; otherwise at each element by itself.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        param, grad, state = next(iter(bucket))
        if not works_on(param.device):
            raise UnfitError(f"the kernels do not work on {param.device}")
        formats = tuple([(key, value.dtype) for key, value in state.items()])
        key = (name, param.device, param.dtype, grad.dtype, formats, h.left_out is not None)
        some = [] if key in _found else [(p, g, of) for p, g, of in bucket if _is_plain(p, g, *of.values())][:TENSORS]
        if some:
            trials = [Bucket.of(_beginning(*part, by_rows) for part in some) for _ in range(2)]
            _found[key] = _agree(kernel, plain, trials, h)
            if not _found[key]:
                logger.warning(
                    "The Triton kernel for %s differs from plain PyTorch on %s (%s parameters, %s state): PyTorch "
                    "takes the steps there, more slowly",
                    name, param.device, param.dtype, sorted({str(dtype) for _, dtype in formats}),
                )  # fmt: skip
        return (kernel if _found.get(key, True) else plain)(bucket, h)

    return where_it_fits(run, plain)


def _is_plain(param: torch.Tensor, *others: torch.Tensor) -> bool:
    return param.numel() > 0 and all(type(tensor) in PLAIN for tensor in (param, *others))


def _agree(kernel: Implementation, plain: Implementation, buckets: list[Bucket], h: Hyperparameters) -> bool:
    """Whether both come to the same with two equal buckets."""
    from triton.errors import TritonError

    for move, bucket in zip((plain, kernel), buckets, strict=True):
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
    for (param, grad, state), ours in zip(*buckets, strict=True):
        (wanted_p, _, wanted_state), (our_p, _, our_state) = in_wide(param, grad, state), in_wide(*ours)
        pairs = [(our_p, wanted_p, COMPENSATED if COMPENSATION in state else ROUNDING[param.dtype])]
        pairs += [(our_state[key], wanted_state[key], ROUNDING[state[key].dtype]) for key in our_state]
        if not all(_is_rounding(*pair) for pair in pairs):
            return False
    return True


def _is_rounding(ours: torch.Tensor, wanted: torch.Tensor, by: float) -> bool:
    size = wanted[wanted.isfinite()].abs().max() if bool(wanted.isfinite().any()) else 0.0
    close = torch.isclose(ours.float(), wanted.float(), rtol=by, atol=float(1e-5 * size), equal_nan=True)
    same = bool((ours.isfinite() == wanted.isfinite()).all())
    return same and float((~close).sum()) <= FLIPS * close.numel()


def _beginning(
    param: torch.Tensor, grad: torch.Tensor, state: State, by_rows: bool
) -> tuple[torch.Tensor, torch.Tensor, State]:
    """Copies of the first rows, or of the first elements, flat. What belongs to columns is copied as a whole."""
    length = param.shape[0] if by_rows else param.numel()
    count = max(min(length, ELEMENTS * length // param.numel()), 1)

    def copied(key: str, tensor: torch.Tensor) -> torch.Tensor:
        first = (tensor if by_rows else tensor.reshape(-1))[: blocks_of(count) if key.endswith(SIZES) else count]
        return first.detach().clone()

    part = StateOfPart({key: copied(key, value) for key, value in state.items()}, place_of(state))
    return copied("", param), copied("", grad), part
