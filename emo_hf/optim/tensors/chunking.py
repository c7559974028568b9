"""Hands an update rule less at a time: its temporaries then do not grow with the model, and stay in the caches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from emo_hf.optim.tensors.eight_bits import BLOCK, SIZES
from emo_hf.optim.update import PLAIN, Hyperparameters, Implementation, State, StateOfPart, place_of

ELEMENTS = 1 << 24
"""What an implementation with temporaries is handed at once."""

PIECE = 1 << 15
"""Elements from which on torch has another thread help; pieces of one such share for each stay in the caches."""


def piece_for(param: torch.Tensor) -> int:
    """How many elements of a parameter are best worked on at a time."""
    return PIECE * torch.get_num_threads() if param.is_cpu else ELEMENTS


def bounded(update: Implementation, elements: int = ELEMENTS, *, elementwise: bool = True) -> Implementation:
    """`update`, called for about as many `elements` at a time; one that is not elementwise gets its tensors whole."""

    def in_parts(
        params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters
    ) -> None:
        if elementwise:
            params, grads, states = cut(params, grads, states, elements)
        for begin, end in runs_of([param.numel() for param in params], elements):
            update(params[begin:end], grads[begin:end], states[begin:end], h)

    return in_parts


def in_pieces(update: Implementation) -> Implementation:
    """An elementwise `update`, called for a piece of one tensor at a time."""

    def run(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        for p, g, state in zip(*cut(params, grads, states, piece_for(params[0])), strict=True):
            update([p], [g], [state], h)

    return run


def ascending(update: Implementation, *, elementwise: bool) -> Implementation:
    """`update` uphill: with the gradients negated, a part of the list at a time."""

    def uphill(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        update(params, list(torch._foreach_neg(grads)), states, h)

    return bounded(uphill, elementwise=elementwise)


def cut(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], elements: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[State]]:
    """The lists with each tensor of more than `elements` replaced by flat views of its pieces, if it has them."""
    if all(param.numel() <= elements for param in params):
        return params, grads, states
    pieces: list[tuple[torch.Tensor, torch.Tensor, State]] = []
    for p, g, state in zip(params, grads, states, strict=True):
        if p.numel() <= elements or not is_flat(p, g, *state.values()):
            pieces.append((p, g, state))
            continue
        parts = [value.view(-1).split(_share(key, elements)) for key, value in state.items()]
        places = range(place_of(state), place_of(state) + p.numel(), elements)
        for place, p_piece, g_piece, *values in zip(
            places, p.view(-1).split(elements), g.view(-1).split(elements), *parts, strict=True
        ):
            pieces.append((p_piece, g_piece, StateOfPart(dict(zip(state, values, strict=True)), place)))
    all_params, all_grads, all_states = zip(*pieces, strict=True)
    return list(all_params), list(all_grads), list(all_states)


def _share(key: str, elements: int) -> int:
    """How much of a state tensor belongs to so many elements; it is less of the sizes that a block shares."""
    return elements // BLOCK if key.endswith(SIZES) else elements


def is_flat(*tensors: torch.Tensor) -> bool:
    """Whether the elements of the tensors lie where they seem to, one after the other."""
    return all(type(tensor) in PLAIN and tensor.is_contiguous() for tensor in tensors)


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
