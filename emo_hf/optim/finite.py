"""Whether gradients are finite: our kernels look at them once; elsewhere their 2-norms say it for little.

A 2-norm is finite only if all elements are. One that is not may have overflowed, so elements are counted then, a
piece of bounded size at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakIdRef

from emo_hf.optim.kernels.look import counts_not_finite
from emo_hf.optim.sharding import is_sharded, local_elements

PIECE = 1 << 22
"""Elements that are looked at at once: what is temporary then are a few bytes for each."""


Groups = Sequence[Mapping[str, Any]]


def gradients_are_finite(groups: Groups) -> bool:
    """Whether no gradient that this rank has holds a NaN or an infinity; on a GPU it waits once for each device."""
    gradients = [gradient for _, gradient in _named_gradients(groups)]
    return all(not count_elements(gradients[i]) for i in norms_not_finite(gradients))


def count_not_finite(groups: Groups) -> dict[str, int]:
    """How many elements of which gradients are NaN or infinite on this rank, by the parameters' names.

    Parameters that the optimizer was not told the names of are called by their place in their group.
    """
    named = list(_named_gradients(groups))
    counts = {named[i][0]: count_elements(named[i][1]) for i in norms_not_finite([of_one for _, of_one in named])}
    return {name: count for name, count in counts.items() if count}


def norms_not_finite(tensors: Sequence[torch.Tensor]) -> list[int]:
    """The tensors, by their place, that may hold a NaN or an infinity; after a norm that overflows they need not."""
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        if tensor.numel() and not has_no_numbers(tensor):
            alike[tensor.device, tensor.dtype].append(i)
    found = []
    for some in alike.values():
        counts = counts_not_finite([tensors[i] for i in some])
        if counts is not None:
            found += [i for i, count in zip(some, counts, strict=True) if count]
            continue
        finite = torch.stack(torch._foreach_norm([tensors[i] for i in some], 2)).isfinite()
        if not bool(finite.all()):
            found += [i for i, is_finite in zip(some, finite.tolist(), strict=True) if not is_finite]
    return found


def has_no_numbers(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape and no elements that could be read: on the meta device, or fake."""
    return tensor.is_meta or hasattr(tensor, "fake_mode")


def count_elements(tensor: torch.Tensor) -> int:
    """How many elements of a tensor are NaN or infinite."""
    finite = sum(part.isfinite().sum() for part in _pieces(tensor.detach()))
    return tensor.numel() - int(finite)


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.numel() <= PIECE:
        yield tensor
        return
    dim = max(range(tensor.dim()), key=tensor.shape.__getitem__)
    for part in tensor.split(max(tensor.shape[dim] * PIECE // tensor.numel(), 1), dim):
        yield from _pieces(part)


def named_parameters(groups: Groups) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters with their names, or else their place in their group."""
    for at, group in enumerate(groups):
        names = group.get("param_names")
        for i, param in enumerate(group["params"]):
            yield names[i] if names else f"parameter {i} of {group.get('name', f'group_{at}')}", param


def _named_gradients(groups: Groups) -> Iterator[tuple[str, torch.Tensor]]:
    for name, param in named_parameters(groups):
        if param.grad is not None:
            own = local_elements(param.grad)
            own = own.coalesce().values() if own.is_sparse else own
            if own.numel():
                yield name, own


class SeenNorm:
    """A norm that clipping has taken, and the gradients that it was taken of.

    Args:
        norm: a norm of order 1 or more, over the gradients of all of `params`; infinite or NaN if an element was.
        params: the parameters, with their gradients as they are now.
    """

    def __init__(self, norm: Any, params: Iterable[torch.Tensor]) -> None:
        self._norm = norm
        gradients = {id(param): param.grad for param in params if param.grad is not None}
        self._versions = {key: gradient._version for key, gradient in gradients.items()}
        self._first = next(((key, WeakIdRef(gradient)) for key, gradient in gradients.items()), None)

    @property
    def is_at_hand(self) -> bool:
        """Whether the norm can be read without waiting for a device."""
        return not isinstance(self._norm, torch.Tensor) or self._norm.is_cpu

    def says_finite(self, groups: Groups) -> bool:
        """Whether the gradients of all parameters in these groups are still those of the norm, and are finite."""
        if self._first is None or (isinstance(self._norm, torch.Tensor) and is_sharded(self._norm)):
            return False
        for group in groups:
            for param in group["params"]:
                gradient = param.grad
                if gradient is not None and self._versions.get(id(param)) != gradient._version:
                    return False
                if id(param) == self._first[0] and self._first[1]() is not gradient:  # of a later backward pass
                    return False
        self._norm = float(self._norm)
        return math.isfinite(self._norm)
