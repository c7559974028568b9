"""Tensors of which this rank holds a part only (DTensors of FSDP2 and tensor parallelism)."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist

from emo_hf.optim.precision.eight_bits import is_eight_bit
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, State, StateOfPart


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    # Where there is one, its module has been imported; nobody else shall pay for that.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_elements(tensor: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """The elements that lie on this rank, sharing their memory; a plain tensor is returned as it is.

    Args:
        tensor: a DTensor or a plain tensor.
        like: a DTensor whose placements the elements have to follow. A gradient may have others (a sum that has still
            to be taken over the ranks, say), and is brought to them.
    """
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor if like is None else placed_like(tensor, like)
    elements: torch.Tensor = sharded.to_local()
    return elements


def placed_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A gradient with the placements of its parameter (its own may be a sum that is still to be taken)."""
    if not is_sharded(tensor):
        return tensor
    placements, sharded = cast(Any, like).placements, cast(Any, tensor)
    placed: torch.Tensor = sharded if sharded.placements == placements else sharded.redistribute(placements=placements)
    return placed


def as_local_part_of(own: torch.Tensor, like: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
    """`own` as this rank's part of a tensor that is dealt out as `like` is; a plain one if `like` is plain.

    Args:
        own: the elements on this rank.
        like: a DTensor or a plain tensor.
        shape: of the whole tensor; None for that of `like`.
    """
    if not is_sharded(like):
        return own
    from torch.distributed.tensor import DTensor

    size = like.shape if shape is None else torch.Size(shape)
    dealt, stride = cast(DTensor, like), torch.empty(size, device="meta").stride()
    return DTensor.from_local(own, dealt.device_mesh, dealt.placements, run_check=False, shape=size, stride=stride)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All elements of a tensor, collected from the ranks, all of which have to ask; a plain one is returned as it is.

    They are brought to where the ranks can meet, and back: offloaded shards lie elsewhere.
    """
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor.detach()
    collected: torch.Tensor = sharded.to(sharded.device_mesh.device_type).full_tensor()
    return collected.to(tensor.device)


def distributed_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on all ranks, dealt out as `like` is, all ranks together; plain if `like` is plain."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(tensor, sharded.device_mesh, sharded.placements).to(tensor.device)


def splits_rows(placement: Any) -> bool | None:
    """True if a placement deals out rows, False if it deals out another dim, None if it deals out nothing."""
    return placement.dim == 0 if hasattr(placement, "dim") else None


def splits(placement: Any) -> bool:
    """Whether a placement deals out anything."""
    return splits_rows(placement) is not None


def sum_over_shards(sums: Sequence[tuple[torch.Tensor, torch.Tensor, Callable[[Any], bool]]]) -> None:
    """Complete sums to which several ranks have to contribute, in place, with one collective for all of them.

    Args:
        sums: for each sum, the parameter that it is over, this rank's share of it, and which placements of the
            parameter divide it between ranks. Shares of plain parameters are complete, and left as they are.
    """
    to_sum: dict[tuple[Any, int], list[torch.Tensor]] = {}  # (mesh, its dimension) → shares; the same on every rank
    for param, share, divided_by in sums:
        if is_sharded(param):
            sharded = cast(Any, param)
            for dimension, placement in enumerate(sharded.placements):
                if divided_by(placement):
                    to_sum.setdefault((sharded.device_mesh, dimension), []).append(share)
    for (mesh, dimension), shares in to_sum.items():
        together = torch.cat([share.flatten() for share in shares])
        dist.all_reduce(together, group=mesh.get_group(dimension))
        for share, total in zip(shares, together.split([share.numel() for share in shares]), strict=True):
            share.copy_(total.view_as(share))


def whole_norms(params: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], order: int) -> list[torch.Tensor]:
    """The norm of each tensor over all of its elements, on whichever ranks they are, in float32 at least.

    Args:
        params: the parameters, whose placements tell who holds what.
        tensors: this rank's elements of the parameters or of their gradients.
        order: 1 or 2.

    Returns:
        Tensors of no dims, the same on every rank.
    """
    wide = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors], torch.float32)
    norms = [torch.linalg.vector_norm(tensor, order, dtype=wide) for tensor in tensors]
    if any(map(is_sharded, params)):
        powers = [norm**order for norm in norms]
        sum_over_shards([(param, power, splits) for param, power in zip(params, powers, strict=True)])
        norms = [power ** (1 / order) for power in powers]
    return norms


def on_local_elements(update: Implementation) -> Implementation:
    """`update` on the elements that lie on this rank: all that an elementwise rule needs of sharded tensors."""

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        own = Bucket.of(
            (local_elements(param), local_elements(grad, like=param), local_state(param, state))
            for param, grad, state in bucket
            if local_elements(param).numel()  # a rank may hold none of a small one
        )
        if len(own):
            update(own, h)

    return run


def local_state(param: torch.Tensor, state: State) -> State:
    """What of the state of a parameter lies on this rank."""
    own = {key: local_elements(value) for key, value in state.items()}
    # Only what is rounded at random asks for its place.
    return StateOfPart(own, place_of_shard(param)) if any(map(is_eight_bit, own.values())) else own


def place_of_shard(tensor: torch.Tensor) -> int:
    """The place, in the whole tensor, of the first element that lies on this rank.

    It is 0 for a plain tensor, and for shards that are no runs of rows: their elements count by themselves.
    """
    dealt = deals_of_rows(tensor) if is_sharded(tensor) else None
    if not dealt:
        return 0
    first, rows = 0, tensor.shape[0]
    for ranks, rank in dealt:  # each deals out what the one before has left to this rank
        share = -(-rows // ranks)
        before = min(rank * share, rows)
        first, rows = first + before, min(share, rows - before)
    return first * math.prod(tensor.shape[1:])


def deals_of_rows(tensor: torch.Tensor) -> list[tuple[int, int]] | None:
    """(ranks, which of them this one is) for each dim of the mesh that deals out rows.

    None if something else is dealt out, or rows not as runs, as with `_StridedShard`.
    """
    from torch.distributed.tensor import Replicate, Shard

    sharded, dealt = cast(Any, tensor), []
    for dim, placement in enumerate(sharded.placements):
        if type(placement) is Shard and placement.dim == 0:
            dealt.append((sharded.device_mesh.size(dim), sharded.device_mesh.get_local_rank(dim)))
        elif type(placement) is not Replicate:
            return None
    return dealt
