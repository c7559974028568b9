"""Sorts tensors by what can move them: by device and dtype, by layout, by where their elements lie."""

from __future__ import annotations

from collections.abc import Callable

import torch

from emo_hf.optim.tensors.blocks import place_of_shard
from emo_hf.optim.tensors.dtensor import own_elements
from emo_hf.optim.tensors.eight_bits import is_eight_bit
from emo_hf.optim.update import Hyperparameters, Implementation, State, StateOfPart, any_lazy


def state_tensors(states: list[State], key: str) -> list[torch.Tensor]:
    """One state tensor of each parameter."""
    return [state[key] for state in states]


def where(fits: Callable[..., bool], run: Implementation, otherwise: Implementation) -> Implementation:
    """`run` for the parameters for which `fits(parameter, gradient, *states)`, `otherwise` for the others."""

    def update(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        fit = [fits(p, g, *state.values()) for p, g, state in zip(params, grads, states, strict=True)]
        if all(fit):
            return run(params, grads, states, h)
        for rule, wanted in ((run, True), (otherwise, False)):
            part = [i for i, it_fits in enumerate(fit) if it_fits is wanted]
            if part:
                rule([params[i] for i in part], [grads[i] for i in part], [states[i] for i in part], h)
        return None

    return update


def of_one_layout(*tensors: torch.Tensor) -> bool:
    """Whether the tensors hold their elements in one order without gaps: what torch's fused kernels expect."""
    first = tensors[0]
    dense = first.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(first)
    return dense and all(tensor.stride() == first.stride() for tensor in tensors) and not any_lazy(tensors)


def on_own_elements(update: Implementation) -> Implementation:
    """`update` on the elements that lie on this rank: all that an elementwise rule needs of sharded tensors."""

    def run(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        own_params = [own_elements(param) for param in params]
        own_grads = [own_elements(grad, like=param) for grad, param in zip(grads, params, strict=True)]
        own_states = list(map(_own_state, params, states))
        some = [i for i, param in enumerate(own_params) if param.numel() > 0]  # a rank may hold none of a small one
        update([own_params[i] for i in some], [own_grads[i] for i in some], [own_states[i] for i in some], h)

    return run


def _own_state(param: torch.Tensor, state: State) -> State:
    """What of the state of a parameter lies on this rank."""
    own = {key: own_elements(value) for key, value in state.items()}
    # Only what is rounded at random asks for its place.
    return StateOfPart(own, place_of_shard(param)) if any(map(is_eight_bit, own.values())) else own
