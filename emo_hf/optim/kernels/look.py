"""Looks at gradients and counts what is NaN or infinite, in one pass at the speed of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emo_hf.optim.kernels.build import kernels
from emo_hf.optim.kernels.library import BY_DTYPE, FLOATS, addresses, ends_of, integers
from emo_hf.optim.kernels.team import team_for
from emo_hf.optim.kernels.tensors import all_fit, check_memory


def counts_not_finite(tensors: Sequence[torch.Tensor]) -> list[int] | None:
    """How many elements of each tensor are NaN or infinite; None if the kernels cannot look at them.

    Args:
        tensors: of one device and one dtype.
    """
    library = kernels() if tensors and tensors[0].is_cpu and tensors[0].dtype in FLOATS else None
    if library is None or not all_fit(tensors):
        return None
    counts = list(map(torch.Tensor.numel, tensors))
    ends, bad = ends_of(counts, library), integers([0] * len(tensors))
    lacking = library.count_not_finite(
        team_for(ends[-1], library), len(tensors), integers(counts), ends, addresses(tensors),
        BY_DTYPE[tensors[0].dtype], bad,
    )  # fmt: skip
    check_memory(lacking)
    return list(bad)
