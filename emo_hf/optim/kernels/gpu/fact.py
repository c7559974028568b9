"""Launches the kernels of the Adafactor-type rule for matrices: three launches for those of one shape of region."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from emo_hf.optim.kernels.checks import UnfitError, check_numbers_of_elements
from emo_hf.optim.kernels.gpu.available import kernel, on
from emo_hf.optim.kernels.gpu.elementwise import language, seed_of, where_it_fits
from emo_hf.optim.kernels.gpu.kept import check_kept
from emo_hf.optim.kernels.gpu.tables import TOGETHER, addresses, are_aligned, begins, check_tensors, owners, table
from emo_hf.optim.kernels.gpu.trust import first_rows
from emo_hf.optim.kernels.launch import PLAINLY, Kept
from emo_hf.optim.state_keys import COLUMN_RMS, ROW_RMS
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation


@dataclass(frozen=True, slots=True)
class Region:
    """What one program works on: `columns` columns, and `steps` times `rows` rows, which it holds at once."""

    rows: int
    columns: int
    steps: int

    def below(self, rows: int) -> int:
        """How many lie below each other in a matrix of so many rows."""
        return -(-rows // (self.rows * self.steps))

    def beside(self, columns: int) -> int:
        """How many lie beside each other in a matrix of so many columns."""
        return -(-columns // self.columns)


WIDE, NARROW = Region(8, 256, 8), Region(128, 16, 8)
"""All regions have as many elements; in narrow matrices, as LoRA's are, wide ones would be empty for the most part."""

NARROW_UP_TO = 64
"""Columns."""

LENGTH, SHARES = 32, 32
"""Sizes that a program makes, and sums that it adds up for each at once."""


def matrices(otherwise: Implementation) -> Implementation:
    """An implementation for matrices; it leaves out what is to be left out, and knows 16 and 24 bits.

    Args:
        otherwise: moves the matrices that the kernels cannot work on.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        rows, columns = bucket.state(ROW_RMS), bucket.state(COLUMN_RMS)
        move_matrices(bucket.params, bucket.grads, rows, columns, h, Kept.of(bucket.states))

    return where_it_fits(run, otherwise, name=lambda h: "fact", cut=first_rows)


def move_matrices(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    rows: list[torch.Tensor],
    columns: list[torch.Tensor],
    h: Hyperparameters,
    kept: Kept = PLAINLY,
) -> None:
    """Move matrices by the kernels of `source/fact.py`.

    Args:
        params: parameters with two or more dims, which are moved in place. A row is what has one index of the first.
        grads: their gradients.
        rows: r of each, with an element for each row, in float32.
        columns: k of each, with an element for each column, in float32.
        h: the numbers of the step; with `left_out`, elements without a finite gradient are left out and counted.
        kept: what belongs to parameters in fewer than 32 bits: a compensation in their dtype, or in int8 for bfloat16.

    Raises:
        UnfitError: if the kernels cannot work on a tensor. Nothing has been moved then.
        RuntimeError: if a tensor has another number of elements than it should, or no memory.
    """
    of_state = {} if kept.compensation is None else {"compensation": kept.compensation}
    check_tensors(parameter=params, gradient=grads, **of_state)
    check_kept(params, [], kept)
    if any(param.dim() < 2 for param in params):
        raise RuntimeError("a parameter with fewer than two dims has no rows and columns: `fact_vector` moves it")
    heights = [param.shape[0] for param in params]
    elements = list(map(torch.Tensor.numel, params))
    widths = [
        n // param.shape[0] if n else math.prod(param.shape[1:]) for n, param in zip(elements, params, strict=True)
    ]
    check_numbers_of_elements("row_state", rows, heights)
    check_numbers_of_elements("column_state", columns, widths)
    _check_layout([params, grads, *of_state.values()], [rows, columns], params[0])
    places = list(zip(*map(addresses, [params, grads, rows, columns, *of_state.values()]), strict=True))
    groups: dict[tuple[Region, bool], list[int]] = {}
    for i, (width, place) in enumerate(zip(widths, places, strict=True)):
        if elements[i]:
            aligned = width % TOGETHER == 0 and are_aligned(place[:2] + place[4:])
            groups.setdefault((NARROW if width <= NARROW_UP_TO else WIDE, aligned), []).append(i)
    call = _Call(params[0].device, h, params, grads, kept.compensation)
    with on(call.device):
        for (region, aligned), some in groups.items():
            call.move(
                [places[i] for i in some], [heights[i] for i in some], [widths[i] for i in some], region, aligned
            )
    torch.autograd.graph.increment_version(params)


def _check_layout(
    matrices: Iterable[list[torch.Tensor]], sizes: Iterable[list[torch.Tensor]], first: torch.Tensor
) -> None:
    if not all(all(map(torch.Tensor.is_contiguous, tensors)) for tensors in [*matrices, *sizes]):
        raise UnfitError("a matrix, its gradient or its sizes are not contiguous: leave native=None")
    for tensors in sizes:
        if any(size.dtype is not torch.float32 or size.device != first.device for size in tensors):
            raise UnfitError(f"sizes of rows and columns are not torch.float32 on {first.device}: leave native=None")


@dataclass(frozen=True, slots=True)
class _Call:
    device: torch.device
    h: Hyperparameters
    params: list[torch.Tensor]
    grads: list[torch.Tensor]
    compensation: list[torch.Tensor] | None

    def formats(self) -> dict[str, Any]:
        """The constants of `fact.move` beside those of its regions."""
        compensation = self.compensation or []
        return {"P": language(self.params), "C": language(compensation), "COMPENSATED": bool(compensation)}

    def move(
        self, places: list[tuple[int, ...]], heights: list[int], widths: list[int], region: Region, aligned: bool
    ) -> None:
        """Move matrices that lie at these places, by regions of one shape."""
        h, device, count = self.h, self.device, len(places)
        below, beside = list(map(region.below, heights)), list(map(region.beside, widths))
        programs = [down * right for down, right in zip(below, beside, strict=True)]
        shares = [pair for of_one in zip(beside, below, strict=True) for pair in of_one]
        lengths = [pair for of_one in zip(heights, widths, strict=True) for pair in of_one]
        means_of = [pair for of_one in zip(widths, heights, strict=True) for pair in of_one]
        sums_at = begins([share * length for share, length in zip(shares, lengths, strict=True)])
        lacking_at = begins(lengths)
        p, g, r, k, *c = (list(column) for column in zip(*places, strict=True))
        where = table(
            [
                p, g, r, k, c[0] if c else [0] * count, heights, widths, begins(programs),
                sums_at[::2], sums_at[1::2], lacking_at[::2], lacking_at[1::2],
            ],
            device,
        )  # fmt: skip
        blocks = [-(-length // LENGTH) for length in lengths]
        sizes_at = [pair for of_one in zip(r, k, strict=True) for pair in of_one]
        of_sizes = table([sizes_at, lengths, means_of, begins(blocks), sums_at, shares, lacking_at], device)
        sums = torch.empty(sums_at[-1] + shares[-1] * lengths[-1], dtype=torch.float32, device=device)
        leave_out = h.left_out is not None
        lacking = torch.zeros(sum(lengths), dtype=torch.int32, device=device) if leave_out else sums
        left_out = sums if h.left_out is None else h.left_out.counter(device)
        own = owners(programs, device), count
        of_regions = {"LEAVE_OUT": leave_out, "ALIGNED": aligned, "G": language(self.grads), "ROWS": region.rows}
        of_regions |= {"COLUMNS": region.columns, "STEPS": region.steps}
        kernel("fact.squares")[(sum(programs),)](where, *own, sums, lacking, left_out, **of_regions)
        kernel("fact.sizes")[(sum(blocks),)](
            of_sizes, owners(blocks, device), 2 * count, sums, lacking, h.beta1, 1 - h.beta1, h.eps,
            LEAVE_OUT=leave_out, LENGTH=LENGTH, SHARES=SHARES,
        )  # fmt: skip
        kernel("fact.move")[(sum(programs),)](
            where, *own, seed_of(h), h.lr, h.decay, h.eps, **self.formats(), **of_regions
        )
