"""Whether the tensors of a saved state are kept as they were when it was saved.

torch's checkpointing reads into tensors that are there: where those are floats and codes were saved, or the reverse,
it turns one into the other as numbers, without a word. So a state says of how many parameters it holds which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from emo_hf.optim.precision.eight_bits import EIGHT_BITS, SMALLEST, is_eight_bit
from emo_hf.optim.state_keys import COMPENSATION

NOTE = "eight_bits"
"""Where the emotion carries it: [parameters in 8 bits, large ones in floats]."""


def is_noted(state: Mapping[str, Any]) -> bool:
    """Whether a state is one of which this is said."""
    return any(group.get("state") == EIGHT_BITS for group in state["param_groups"])


def count(state: Mapping[str, Any], names: frozenset[str]) -> list[int]:
    """Of how many parameters a state holds codes, and of how many large ones floats.

    Args:
        state: a packed state.
        names: of the tensors that can be kept in 8 bits; all of those of a parameter are kept alike.
    """
    kept = [next((of_one[name] for name in names if name in of_one), None) for of_one in state["state"].values()]
    tensors = [tensor for tensor in kept if isinstance(tensor, torch.Tensor)]
    in_floats = [tensor for tensor in tensors if not is_eight_bit(tensor)]
    return [len(tensors) - len(in_floats), sum(tensor.numel() >= SMALLEST for tensor in in_floats)]


def check_codes(state: Mapping[str, Any], emotion: Mapping[str, Any], names: frozenset[str]) -> None:
    """Refuse a state whose codes have become floats on the way, or its floats codes.

    Args:
        state: what is to be loaded.
        emotion: the one in it.
        names: of the tensors that can be kept in 8 bits.

    Raises:
        ValueError: saying how to load it.
    """
    noted = emotion.get(NOTE, [0, 0]) if is_noted(state) else [0, math.inf]
    found = count(state, names)
    if any(here > there for here, there in zip(found, noted, strict=True)) or _has_other_correction(state):
        raise ValueError(
            "this optimizer state was read into tensors of another kind than those that were saved: numbers of 8 bits "
            "have become floats, or floats such numbers, and what they stood for is gone. Distributed checkpoints, "
            "and full state dicts that rank 0 broadcasts, are read into the tensors of the optimizer: make it with "
            "the state= and compensate= that it was saved with (and where shards are the reason, with as many ranks), "
            "or load a full state dict on each rank, which is brought over"
        )


def _has_other_correction(state: Mapping[str, Any]) -> bool:
    for group in state["param_groups"]:
        for key in group["params"]:
            correction = state["state"].get(key, {}).get(COMPENSATION)
            if isinstance(correction, torch.Tensor) and group.get("compensate") == (
                True if is_eight_bit(correction) else EIGHT_BITS
            ):
                return True
    return False
