"""Parameters and state in fewer than 32 bits: arithmetic in float32, and options that lose no small update.

A bfloat16 has 8 significant bits: an update below 0.2 % of its parameter is rounded away, step after step. With
`compensate=True` each such parameter has one more tensor of its own dtype for what rounding took from it, so that the
two together carry 16 bits (22 with float16), and the rest of its state is kept in float32. The bytes of state per
element are then 10 for EmoNavi, 6 for EmoLynx and 2 (and the rows and columns) for EmoFact, instead of 4, 2 and 0.

With `compensate="8bit"` it is one byte more for a bfloat16, 16 bits as well; with `state="8bit"` each tensor of state
is a byte an element (see `eight_bits.py`). Together that is 3 bytes for EmoNavi, 2 for EmoLynx and 1 for EmoFact.
"""

from __future__ import annotations

import torch

from emo_hf.optim.pieces import bounded
from emo_hf.optim.precision.blocks import sizes_for
from emo_hf.optim.precision.eight_bits import (
    EIGHT_BITS,
    SIZES,
    decode,
    draw,
    encode,
    is_eight_bit,
    join,
    split,
)
from emo_hf.optim.sharding import as_local_part_of, local_elements, place_of_shard
from emo_hf.optim.state_keys import AVERAGE, COMPENSATION, EXP_AVG_SQ, SHADOW
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, State, place_of

LOW_PRECISION = (torch.bfloat16, torch.float16)

ELEMENTS_IN_CACHES = 1 << 18
ELEMENTS_ON_DEVICE = 1 << 22
"""What is held in float32 at once; with a rule that is not elementwise, at least one parameter."""


def in_wide(param: torch.Tensor, grad: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
    """Copies in float32 of what a parameter, its gradient and its state stand for.

    Formats of 8 bits are read, and written by `take_back`, where they lie: by this rank's elements of DTensors.
    """
    correction = state.get(COMPENSATION)
    if correction is None:
        wide = param.detach().to(torch.float32, copy=True)
    elif is_eight_bit(correction):
        wide = as_local_part_of(join(local_elements(param), local_elements(correction)), param)
    else:
        wide = param.detach().float().add_(correction)

    def in_float32(key: str, value: torch.Tensor) -> torch.Tensor:
        if not is_eight_bit(value):
            return value.float()
        return as_local_part_of(decode(local_elements(value), local_elements(state[key + SIZES])), value)

    moved = [key for key in state if key not in (COMPENSATION, SHADOW, AVERAGE) and not key.endswith(SIZES)]
    return wide, grad.float(), {key: in_float32(key, state[key]) for key in moved}


def take_back(
    param: torch.Tensor, grad: torch.Tensor, state: State, wide: torch.Tensor, wide_state: State, seed: int
) -> None:
    """Round what has been moved to what it is kept in."""
    correction = state.get(COMPENSATION)
    codes = any(map(is_eight_bit, state.values()))
    place = (place_of(state) or place_of_shard(param)) if codes else 0
    chance = draw(local_elements(grad, like=param), place, seed) if codes else torch.empty(0)
    if correction is not None and is_eight_bit(correction):
        upper, low = split(local_elements(wide), chance)
        local_elements(param).copy_(upper)
        local_elements(correction).copy_(low)
    else:
        param.copy_(wide)
        if correction is not None:
            correction.copy_(wide.sub_(param))
    for key, value in wide_state.items():
        kept = state[key]
        if is_eight_bit(kept):
            rounded, sizes = encode(local_elements(value), kept.dtype, chance)
            local_elements(kept).copy_(rounded)
            own_sizes = local_elements(state[key + SIZES])
            own_sizes.copy_(sizes.view_as(own_sizes))
        elif value is not kept:
            kept.copy_(value)


def in_float32(update: Implementation, *, elementwise: bool, on_cpu: bool) -> Implementation:
    """`update` on float32 copies; what does not fit into the parameter goes into its compensation, if it has one."""

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        wide = Bucket.of(in_wide(*of_one) for of_one in bucket)
        update(wide, h)
        for of_one, (moved, _, state) in zip(bucket, wide, strict=True):
            take_back(*of_one, moved, state, h.seed)

    return bounded(run, ELEMENTS_IN_CACHES if on_cpu else ELEMENTS_ON_DEVICE, elementwise=elementwise)


def in_float32_if_kept_in_less(update: Implementation, *, elementwise: bool = False) -> Implementation:
    """`update` on float32 copies of what is kept in fewer bits, and on the rest as it is."""

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        first = bucket.params[0]
        less = first.dtype in LOW_PRECISION or any(map(is_eight_bit, bucket.states[0].values()))
        chosen = in_float32(update, elementwise=elementwise, on_cpu=first.is_cpu) if less else update
        chosen(bucket, h)

    return run


def first_compensation(param: torch.Tensor, how: bool | str) -> torch.Tensor:
    """What a bfloat16 or float16 parameter begins with: nothing has been rounded away.

    Raises:
        RuntimeError: if it cannot be kept so.
    """
    refuse_float16_in_eight_bits(param, how == EIGHT_BITS)
    dtype = torch.int8 if how == EIGHT_BITS else param.dtype
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def refuse_float16_in_eight_bits(param: torch.Tensor, eight_bits: bool) -> None:
    """Raise RuntimeError for a float16 parameter whose compensation is, or is to be, in 8 bits."""
    if eight_bits and param.dtype is torch.float16:
        raise RuntimeError("compensate='8bit' is for bfloat16, and a parameter is float16: take compensate=True")


def put_back(param: torch.Tensor, correction: torch.Tensor) -> None:
    """Add to a parameter what rounding had taken from it; in float32 it then holds what both held together."""
    own, rest = local_elements(param), local_elements(correction).to(param.device)
    if is_eight_bit(rest):
        own.copy_(join(own.bfloat16(), rest))
    else:
        own.add_(rest)


def in_eight_bits(state: State, names: frozenset[str]) -> State:
    """The first state of a parameter with some of its tensors in 8 bits, and their sizes."""
    kept: State = {}
    for key, value in state.items():
        if key not in names:
            kept[key] = value
            continue
        dtype = torch.uint8 if key == EXP_AVG_SQ else torch.int8
        kept[key] = torch.zeros_like(value, dtype=dtype, memory_format=torch.preserve_format)
        kept[key + SIZES] = sizes_for(value)
    return kept
