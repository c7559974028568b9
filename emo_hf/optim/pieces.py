"""Hands an update rule less at a time: its temporaries then do not grow with the model, and stay in the caches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from emo_hf.optim.precision.eight_bits import BLOCK, SIZES
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, StateOfPart, is_flat, place_of

ELEMENTS = 1 << 24
"""What an implementation with temporaries is handed at once."""

PIECE = 1 << 15
"""Elements from which on torch has another thread help; pieces of one such share for each stay in the caches."""


def piece_for(param: torch.Tensor) -> int:
    """How many elements of a parameter are best worked on at a time."""
    return PIECE * torch.get_num_threads() if param.is_cpu else ELEMENTS


def bounded(update: Implementation, elements: int = ELEMENTS, *, elementwise: bool = True) -> Implementation:
    """`update`, called for about as many `elements` at a time; one that is not elementwise gets its tensors whole."""

    def in_parts(bucket: Bucket, h: Hyperparameters) -> None:
        bucket = cut(bucket, elements) if elementwise else bucket
        for begin, end in runs_of([param.numel() for param in bucket.params], elements):
            update(bucket.some(range(begin, end)), h)

    return in_parts


def in_pieces(update: Implementation) -> Implementation:
    """An elementwise `update`, called for a piece of one tensor at a time."""

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        for part in cut(bucket, piece_for(bucket.params[0])):
            update(Bucket.of([part]), h)

    return run


def ascending(update: Implementation, *, elementwise: bool) -> Implementation:
    """`update` uphill: with the gradients negated, a part of the list at a time."""

    def uphill(bucket: Bucket, h: Hyperparameters) -> None:
        update(Bucket(bucket.params, list(torch._foreach_neg(bucket.grads)), bucket.states), h)

    return bounded(uphill, elementwise=elementwise)


def cut(bucket: Bucket, elements: int) -> Bucket:
    """The bucket with each tensor of more than `elements` replaced by flat views of its pieces, if it has them."""
    if all(param.numel() <= elements for param in bucket.params):
        return bucket
    pieces = Bucket()
    for p, g, state in bucket:
        if p.numel() <= elements or not is_flat(p, g, *state.values()):
            pieces.add(p, g, state)
            continue
        parts = [value.view(-1).split(_share(key, elements)) for key, value in state.items()]
        of_p, of_g = p.view(-1).split(elements), g.view(-1).split(elements)
        for i, (p_piece, g_piece, *values) in enumerate(zip(of_p, of_g, *parts, strict=True)):
            place = place_of(state) + i * elements
            pieces.add(p_piece, g_piece, StateOfPart(dict(zip(state, values, strict=True)), place))
    return pieces


def _share(key: str, elements: int) -> int:
    """How much of a state tensor belongs to so many elements; it is less of the sizes that a block shares."""
    return elements // BLOCK if key.endswith(SIZES) else elements


def runs_of(lengths: Iterable[int], limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of a list whose lengths add up to at most `limit`, or that hold a single longer item."""
    begin = end = total = 0
    for length in lengths:
        if total and total + length > limit:
            yield begin, end
            begin, total = end, 0
        total += length
        end += 1
    if end > begin:
        yield begin, end
