"""The look at gradients counts what torch counts, whatever the format, the sizes and the number of threads."""

from __future__ import annotations

import math

import pytest
import torch

from emo_hf.optim.kernels.look import LOOKED_AT, counts_not_finite

SIZES = (1, 0, 5, 255, 4097, 32768, 100_001)


@pytest.mark.parametrize("dtype", LOOKED_AT)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_element_that_is_not_finite_is_counted_and_no_other(dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        chance = torch.Generator().manual_seed(0)
        tensors = [torch.randn(size, generator=chance).to(dtype) for size in SIZES]
        assert counts_not_finite(tensors) == [0] * len(SIZES)
        for tensor in tensors:
            tensor[: tensor.numel() // 3 : 7] = torch.finfo(dtype).max  # as large as a finite number is
            for value, at in ((math.nan, 0), (math.inf, tensor.numel() // 2), (-math.inf, tensor.numel() - 1)):
                tensor[at : at + 1] = value
        assert counts_not_finite(tensors) == [int((~tensor.isfinite()).sum()) for tensor in tensors]
    finally:
        torch.set_num_threads(before)


def test_what_the_kernels_cannot_look_at_is_left_to_torch() -> None:
    assert counts_not_finite([torch.zeros(3, dtype=torch.float64)]) is None
    assert counts_not_finite([torch.zeros(4, 4).t()[:2]]) is None
    assert counts_not_finite([]) is None
