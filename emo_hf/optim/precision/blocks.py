"""Where the blocks of an 8-bit tensor lie, in the whole tensor and in the shards that ranks hold of it.

A tensor of R rows of n elements, n the product of all dims but the first, has a block end where a row ends every
G = 256 / gcd(256, n) rows. If G divides R, the sizes of its blocks have the shape (R/G, G·n/256): they can be dealt
out over ranks as the rows are, and a checkpoint carries them to another number of ranks. Otherwise they are flat.

A shard has blocks of its own if it is a run of rows that begins and ends where a block does. With G = 1, rows of a
multiple of 256 elements, any deal of rows is such; with more, a deal of equally many rows to each, a multiple of G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from emo_hf.optim.precision.eight_bits import BLOCK, SMALLEST, blocks_of
from emo_hf.optim.sharding import as_local_part_of, deals_of_rows, is_sharded, local_elements


def shape_of_sizes(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the sizes of a tensor's blocks."""
    elements = math.prod(shape)
    if not elements or elements % BLOCK:
        return (blocks_of(elements),)
    rows = _rows_to_a_block_end(shape)
    return shape[0] // rows, elements // shape[0] * rows // BLOCK


def _rows_to_a_block_end(shape: Sequence[int]) -> int:
    """G."""
    return BLOCK // math.gcd(BLOCK, math.prod(shape[1:]))


def sizes_for(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros for the sizes of a tensor's blocks, in float32 on its device; dealt out as it is, if it is a DTensor."""
    own, shape = local_elements(tensor), shape_of_sizes(tensor.shape)
    if not is_sharded(tensor):
        return torch.zeros(shape, device=own.device)
    rows = own.shape[0] // _rows_to_a_block_end(tensor.shape)
    return as_local_part_of(torch.zeros([rows, *shape[1:]], device=own.device), tensor, shape)


def are_whole(tensor: torch.Tensor) -> bool:
    """Whether what each rank holds of a tensor has blocks of its own. It is the same on all ranks."""
    if not is_sharded(tensor):
        return True
    dealt = deals_of_rows(tensor)
    if dealt is None:
        return False
    rows = _rows_to_a_block_end(tensor.shape)
    return rows == 1 or tensor.shape[0] % (rows * math.prod(ranks for ranks, _ in dealt)) == 0


def fit(param: torch.Tensor) -> bool:
    """Whether the state of a parameter can be kept in 8 bits, and is not too small to be worth it."""
    return param.numel() >= SMALLEST and are_whole(param)


def left_in_floats(params: Sequence[torch.Tensor]) -> str | None:
    """What to say of parameters whose state would be in 8 bits if they were not sharded as they are; None of none."""
    large = [param for param in params if param.numel() >= SMALLEST]
    left = [param for param in large if not are_whole(param)]
    if not left:
        return None
    share = sum(param.numel() for param in left) / sum(param.numel() for param in large)
    first = cast(Any, left[0])
    return (
        f"state='8bit': {len(left)} of {len(large)} large parameters of a group ({share:.1%} of their elements) keep "
        f"float32 state, for instance one of shape {tuple(first.shape)} dealt out as {first.placements} over "
        f"{tuple(first.device_mesh.shape)} ranks: {BLOCK} elements share a size, and a rank's shard of these is no "
        f"run of whole blocks, as any shard of rows of a multiple of {BLOCK} elements is"
    )
