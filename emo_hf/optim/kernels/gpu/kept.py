"""What belongs to parameters and state in fewer than 32 bits, checked before a kernel is handed their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch

from emo_hf.optim.kernels.checks import UnfitError, check_numbers_of_elements
from emo_hf.optim.kernels.launch import Kept
from emo_hf.optim.precision.eight_bits import blocks_of, is_eight_bit


def has_eight_bits(states: Sequence[list[torch.Tensor]], kept: Kept) -> bool:
    """Whether state or compensation is kept in 8 bits."""
    lists = [*states, kept.compensation or []]
    return any(is_eight_bit(tensors[0]) for tensors in lists if tensors)


def check_kept(params: list[torch.Tensor], states: Sequence[list[torch.Tensor]], kept: Kept) -> None:
    """Check what the kernels rely on for tensors in fewer bits.

    Args:
        params: the parameters, of one dtype.
        states: a list for each state tensor of the rule, each of one dtype.
        kept: what belongs to both.

    Raises:
        UnfitError: if a compensation is of a dtype that does not belong to its parameter's, tensors with 8 bits are
            not contiguous, or sizes are not float32, contiguous and on the parameters' device.
        RuntimeError: if codes have no sizes, sizes no codes, or a tensor of sizes another number of them than its
            parameter has blocks.
    """
    if kept.compensation:
        _check_compensation(params[0], kept.compensation[0])
    for name, values, sizes in zip_longest(("first", "second"), states, kept.sizes):
        if values and is_eight_bit(values[0]) is (sizes is None):
            there = "without" if sizes is None else "with"
            raise RuntimeError(
                f"the {name} state tensors are {values[0].dtype}, {there} sizes of blocks: torch.int8 and torch.uint8 "
                "have them, other dtypes do not"
            )
        if sizes is not None:
            _check_sizes(f"sizes_of_{name}_state_tensor", params, sizes)
    if has_eight_bits(states, kept) and not all(map(torch.Tensor.is_contiguous, params)):
        # Blocks, and the places that chance depends on, go by the elements' order and not by where they lie.
        raise UnfitError("a parameter with 8 bits is not contiguous: leave native=None")


def _check_compensation(param: torch.Tensor, compensation: torch.Tensor) -> None:
    fits = param.dtype is torch.bfloat16 if is_eight_bit(compensation) else compensation.dtype is param.dtype
    if not fits or compensation.dtype is torch.uint8:
        raise UnfitError(
            f"the compensation is {compensation.dtype} and its parameter {param.dtype}: it is torch.int8 for "
            "torch.bfloat16, or of the parameter's dtype. Leave native=None"
        )


def _check_sizes(name: str, params: list[torch.Tensor], sizes: list[torch.Tensor]) -> None:
    check_numbers_of_elements(name, sizes, [blocks_of(param.numel()) for param in params])
    device = params[0].device
    if any(s.dtype is not torch.float32 or s.device != device or not s.is_contiguous() for s in sizes):
        raise UnfitError(f"sizes of blocks are not contiguous torch.float32 on {device}: leave native=None")
