"""Sorts tensors by what can move them: by device and dtype, by layout, by where their elements lie."""

from __future__ import annotations

from collections.abc import Callable

import torch

from emo_hf.optim.tensors.blocks import place_of_shard
from emo_hf.optim.tensors.dtensor import is_sharded, own_elements
from emo_hf.optim.tensors.eight_bits import SIZES, is_eight_bit
from emo_hf.optim.update import PLAIN, Hyperparameters, Implementation, State, StateOfPart


def by_device_and_dtype(params: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The parameters in lists of one device and one dtype each, sharded ones apart, in their order."""
    if params and all_alike(params):
        return [params]
    buckets: dict[tuple[torch.device, torch.dtype, bool], list[torch.Tensor]] = {}
    for param in params:
        sharded = type(param) not in PLAIN and is_sharded(param)
        buckets.setdefault((param.device, param.dtype, sharded), []).append(param)
    return list(buckets.values())


def all_alike(params: list[torch.Tensor]) -> bool:
    """Whether the parameters are plain tensors of one device and dtype, as they are nearly always."""
    device, dtype = params[0].device, params[0].dtype
    return all([type(p) in PLAIN and p.dtype is dtype and p.device == device for p in params])


def kept_alike(
    params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State]
) -> list[tuple[list[torch.Tensor], list[torch.Tensor], list[State]]]:
    """The lists in two parts: parameters with state in 8 bits, and without."""
    parts = []
    with_it = [any(key.endswith(SIZES) for key in state) for state in states]
    for wanted in (True, False):
        some = [i for i, is_so in enumerate(with_it) if is_so is wanted]
        if some:
            parts.append(([params[i] for i in some], [grads[i] for i in some], [states[i] for i in some]))
    return parts


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
    return dense and all(tensor.stride() == first.stride() for tensor in tensors)


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
