"""Parameters and state in fewer than 32 bits: arithmetic in float32, and options that lose no small update.

A bfloat16 has 8 significant bits: an update below 0.2 % of its parameter is rounded away, step after step. With
`compensate=True` each such parameter has one more tensor of its own dtype for what rounding took from it, so that the
two together carry 16 bits (22 with float16), and the rest of its state is kept in float32. The bytes of state per
element are then 10 for EmoNavi, 6 for EmoLynx and 2 (and the rows and columns) for EmoFact, instead of 4, 2 and 0.

With `compensate="8bit"` it is one byte more for a bfloat16, 16 bits as well; with `state="8bit"` each tensor of state
is a byte an element (see `eight_bits.py`). Together that is 3 bytes for EmoNavi, 2 for EmoLynx and 1 for EmoFact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from emo_hf.optim.pieces import runs_of
from emo_hf.optim.precision.blocks import sizes_for
from emo_hf.optim.precision.eight_bits import (
    BLOCK,
    EIGHT_BITS,
    SIZES,
    decode,
    draw,
    encode,
    is_eight_bit,
    join,
    split,
)
from emo_hf.optim.sharding import own_elements, part_like, place_of_shard
from emo_hf.optim.state_keys import AVERAGE, COMPENSATION, EXP_AVG_SQ, SHADOW
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, State, is_flat, place_of

LOW_PRECISION = (torch.bfloat16, torch.float16)

ELEMENTS_IN_CACHES = 1 << 18
ELEMENTS_ON_DEVICE = 1 << 22
"""What is held in float32 at once; with a rule that is not elementwise, at least one parameter."""


@dataclass(slots=True)
class _Piece:
    """A parameter, or part of one, and the place in the whole of its first element, or the first on this rank.

    Formats of 8 bits are read and written where they lie, by this rank's elements of DTensors.
    """

    param: torch.Tensor
    grad: torch.Tensor
    state: State
    place: int = 0

    def in_float32(self) -> tuple[torch.Tensor, torch.Tensor, State]:
        """Copies of the parameter, its gradient and its state."""
        correction = self.state.get(COMPENSATION)
        if correction is None:
            wide = self.param.detach().to(torch.float32, copy=True)
        elif is_eight_bit(correction):
            wide = part_like(join(own_elements(self.param), own_elements(correction)), self.param)
        else:
            wide = self.param.detach().float().add_(correction)
        return wide, self.grad.float(), {key: self._wide(key) for key in self._names()}

    def _names(self) -> list[str]:
        return [key for key in self.state if key not in (COMPENSATION, SHADOW, AVERAGE) and not key.endswith(SIZES)]

    def _wide(self, key: str) -> torch.Tensor:
        value = self.state[key]
        if not is_eight_bit(value):
            return value.float()
        return part_like(decode(own_elements(value), own_elements(self.state[key + SIZES])), value)

    def take_back(self, wide: torch.Tensor, wide_state: State, seed: int) -> None:
        """Round what has been moved to what it is kept in."""
        correction = self.state.get(COMPENSATION)
        codes = any(map(is_eight_bit, self.state.values()))
        chance = draw(own_elements(self.grad, like=self.param), self.place, seed) if codes else torch.empty(0)
        if correction is not None and is_eight_bit(correction):
            param, low = split(own_elements(wide), chance)
            own_elements(self.param).copy_(param)
            own_elements(correction).copy_(low)
        else:
            self.param.copy_(wide)
            if correction is not None:
                correction.copy_(wide.sub_(self.param))
        for key, value in wide_state.items():
            kept = self.state[key]
            if is_eight_bit(kept):
                rounded, sizes = encode(own_elements(value), kept.dtype, chance)
                own_elements(kept).copy_(rounded)
                own_sizes = own_elements(self.state[key + SIZES])
                own_sizes.copy_(sizes.view_as(own_sizes))
            elif value is not kept:
                kept.copy_(value)


def in_wide(param: torch.Tensor, grad: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
    """What a parameter, its gradient and its state stand for, in float32."""
    return _Piece(param, grad, state).in_float32()


def _pieces(piece: _Piece, elements: int) -> Iterator[_Piece]:
    """Flat pieces of at most so many elements, a multiple of what shares a size, where the tensors can be cut."""
    n = piece.param.numel()
    if n <= elements or not is_flat(piece.param, piece.grad, *piece.state.values()):
        yield piece
        return
    flat = {key: value.view(-1) for key, value in piece.state.items()}
    param, grad = piece.param.view(-1), piece.grad.view(-1)
    for at in range(0, n, elements):
        to = min(at + elements, n)
        blocks = slice(at // BLOCK, -(-to // BLOCK))
        state = {key: value[blocks] if key.endswith(SIZES) else value[at:to] for key, value in flat.items()}
        yield _Piece(param[at:to], grad[at:to], state, piece.place + at)


def in_float32(update: Implementation, *, elementwise: bool, on_cpu: bool) -> Implementation:
    """`update` on float32 copies; what does not fit into the parameter goes into its compensation, if it has one."""

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        limit = ELEMENTS_IN_CACHES if on_cpu else ELEMENTS_ON_DEVICE
        pieces = [_Piece(p, g, state, place_of(state) or place_of_shard(p)) for p, g, state in bucket]
        if elementwise:
            pieces = [part for whole in pieces for part in _pieces(whole, limit)]
        for begin, end in runs_of([piece.param.numel() for piece in pieces], limit):
            some = pieces[begin:end]
            wide = Bucket.of(piece.in_float32() for piece in some)
            update(wide, h)
            for piece, (moved, _, state) in zip(some, wide, strict=True):
                piece.take_back(moved, state, h.seed)

    return run


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
    own, rest = own_elements(param), own_elements(correction).to(param.device)
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


def restore_dtypes(
    state: Mapping[torch.Tensor, dict[str, Any]], groups: list[dict[str, Any]], saved: Mapping[str, Any]
) -> None:
    """Put back what torch brought to the dtype of the parameters when it loaded `saved`."""
    names = [name for group in saved["param_groups"] for name in group["params"]]
    params = [param for group in groups for param in group["params"]]
    for name, param in zip(names, params, strict=True):
        for key, value in saved["state"].get(name, {}).items():
            if not isinstance(value, torch.Tensor) or value.dtype is param.dtype:
                continue
            wider = param.dtype in LOW_PRECISION and value.dtype is torch.float32
            if wider or is_eight_bit(value) or key.endswith(SIZES):
                state[param][key] = value.to(param.device, copy=True)
