"""Runs the kernels of the Adafactor-type rule for matrices."""

from __future__ import annotations

import torch

from emo_hf.optim.kernels.launch import is_main_memory, layout_of, required_library
from emo_hf.optim.kernels.library import KernelHyperparameters, integers
from emo_hf.optim.kernels.team import team_for
from emo_hf.optim.kernels.tensors import KernelTensors, check_memory
from emo_hf.optim.update import Hyperparameters

SPOILT = 1
"""What the kernel for a large matrix returns if a gradient is not finite."""

LARGE = 1 << 22
"""Elements from which on a matrix is worked on by all threads at once."""


def move_matrices(tensors: KernelTensors, h: Hyperparameters) -> list[int]:
    """Move matrices by the kernels of `fact.c`.

    Large matrices are taken apart, so that all threads have a part of each; the others are shared out whole.

    Args:
        tensors: parameters with two or more dims, and as states r and k of each.
        h: the numbers of the step.

    Returns:
        The matrices, by their place in the list, that have been left as they were because a gradient is not finite.

    Raises:
        UnfitError: if the kernels cannot work on a tensor. Nothing has been moved then.
        RuntimeError: if tensors do not belong together, or there are no kernels; nothing has been moved either.
    """
    heights, widths = tensors.check_matrices(is_main_memory)
    elements = list(map(torch.Tensor.numel, tensors.params))
    # Each of the smaller ones is one thread's, so that the last should be short. An empty one has no means.
    order = sorted(filter(elements.__getitem__, range(len(elements))), key=elements.__getitem__, reverse=True)
    if not order:
        return []
    rows, columns = [heights[i] for i in order], [widths[i] for i in order]
    lists = [tensors.params, tensors.grads, *tensors.states, *filter(None, [tensors.compensation])]
    at = [[of_kind[i].data_ptr() for i in order] for of_kind in lists]
    for of_kind in at:
        check_memory(order[of_kind.index(0)] if 0 in of_kind else -1)
    library, layout, numbers = required_library(), layout_of(tensors, h), KernelHyperparameters.of(h)
    absent = 5 - len(lists)
    large = sum([elements[i] >= LARGE for i in order])
    spoilt = []
    for height, width, *of_one in list(zip(rows, columns, *at, strict=True))[:large]:
        sums = _floats(min(height, library.blocks) * width + height)
        said = library.fact_large_matrix(
            team_for(height * width, library), height, width, *of_one, *[0] * absent, sums.data_ptr(), layout, numbers
        )
        check_memory(-1 if said == SPOILT else said)
        spoilt.append(said == SPOILT)
    if large < len(order):
        rows, columns = rows[large:], columns[large:]
        team = team_for(sum(elements[i] for i in order[large:]), library)
        room = max(map(sum, zip(rows, columns, strict=True)))
        scratch, of_small = _floats(team.threads * room), integers([0] * len(rows))
        lacking = library.fact_matrices(
            team, len(rows), integers(rows), integers(columns), *[integers(of_kind[large:]) for of_kind in at],
            *[None] * absent, scratch.data_ptr(), room, of_small, layout, numbers,
        )  # fmt: skip
        check_memory(lacking)
        spoilt += map(bool, of_small)
    torch.autograd.graph.increment_version(tensors.params)
    return [i for i, is_spoilt in zip(order, spoilt, strict=True) if is_spoilt]


def _floats(count: int) -> torch.Tensor:
    # What torch makes tensors of by default is the user's choice, and none of the kernels'.
    return torch.empty(count, dtype=torch.float32, device="cpu")
