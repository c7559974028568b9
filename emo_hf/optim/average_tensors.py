"""The tensors of an average of the weights: how a sample enters it, and how it changes places with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from emo_hf.optim.precision.low import LOW_PRECISION
from emo_hf.optim.sharding import local_elements
from emo_hf.optim.state_keys import AVERAGE

PIECE = 1 << 22  # elements that change places at a time
DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of a float32's


def dtype_of_average(param: torch.Tensor, kept: bool | str) -> torch.dtype:
    """The dtype in which the average of a parameter is kept; see `WeightAverage`."""
    return torch.float32 if param.dtype in LOW_PRECISION and kept != "rounded" else param.dtype


@torch.no_grad()
def sample(moved: Sequence[tuple[torch.Tensor, dict[str, Any]]], share: float, kept: bool | str, age: int) -> None:
    """average ← average + share·(weights − average); the first average is the weights.

    Args:
        moved: parameters with their states.
        share: in (0, 1].
        kept: as `WeightAverage` has it.
        age: of the average, from which what is rounded at random gets its seed.
    """
    params, averages = [], []
    for index, (param, state) in enumerate(moved):
        dtype, device = dtype_of_average(param, kept), torch.device("cpu") if kept == "cpu" else param.device
        average = state.get(AVERAGE)
        if average is None:
            state[AVERAGE] = param.detach().to(device, dtype, copy=True, memory_format=torch.preserve_format)
            continue
        if average.device != device or average.dtype is not dtype:  # the parameter was moved
            average = state[AVERAGE] = average.to(device, dtype)
        own, own_average = local_elements(param), local_elements(average)
        if kept == "rounded" and dtype in DROPPED_BITS:
            exact = own_average.float().lerp_(own.float(), share)
            own_average.copy_(rounded_at_random(exact, dtype, seed=age * len(moved) + index))
        elif own.dtype is dtype and own.device == device:
            params.append(own)
            averages.append(own_average)
        else:
            own_average.lerp_(own.to(device, dtype), share)
    for device in {own.device for own in params}:
        here = [i for i, own in enumerate(params) if own.device == device]
        torch._foreach_lerp_([averages[i] for i in here], [params[i] for i in here], share)


def rounded_at_random(exact: torch.Tensor, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Float32 numbers in 16 bits, rounded up or down so that the mean is right; the same for the same seed."""
    generator = torch.Generator(exact.device).manual_seed(seed)
    bits, dropped = exact.view(torch.int32), DROPPED_BITS[dtype]
    chance = torch.empty_like(bits).random_(0, 1 << dropped, generator=generator)
    return ((bits + chance) & -(1 << dropped)).view(torch.float32).to(dtype)


class Exchange:
    """Parameters and their averages change places, all of them or none.

    `run` may be interrupted anywhere, and goes on where it was when it is called again.

    Args:
        pairs: parameters and averages.
        to_average: whether the parameters hold the average afterwards, or before.
    """

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], *, to_average: bool) -> None:
        self.to_average = to_average
        self._pieces = [piece for param, average in pairs for piece in _pieces(param, average)]
        # How many pieces are done; and what the next one and its average will hold, once that is known.
        self._at: tuple[int, tuple[torch.Tensor, torch.Tensor] | None] = (0, None)

    @torch.no_grad()
    def run(self) -> None:
        """Go through with it."""
        while self._at[0] < len(self._pieces):
            done, new = self._at
            piece, average = self._pieces[done]
            if new is None:
                new = _exchanged(piece, average, self.to_average)
                self._at = (done, new)
            piece.copy_(new[0])
            average.copy_(new[1])
            self._at = (done + 1, None)


def _pieces(param: torch.Tensor, average: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    own, own_average = local_elements(param), local_elements(average)
    if own.dim() == 0 or own.numel() <= PIECE:
        return [(own, own_average)] if own.numel() else []
    rows = max(PIECE // (own.numel() // own.shape[0]), 1)
    return list(zip(own.split(rows), own_average.split(rows), strict=True))


def _exchanged(own: torch.Tensor, average: torch.Tensor, to_average: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What a parameter and the place of its average will hold.

    The float32 that is the place of the average of a bfloat16 weight has room for both: 16 bits for the weight, and
    16 for those bits of the average that the parameter cannot hold, so that the way back restores both exactly. With
    A the bits of the average, W of the weight, P and S what the parameter and the place hold while it is shown:

        P = A₃₁…₁₆ + A₁₅          S = W, A₁₅…₀
    """
    here = own.detach().to(average.device)
    if not (own.dtype is torch.bfloat16 and average.dtype is torch.float32):
        return average.to(own.device, own.dtype, copy=True), here.to(average.dtype, copy=True)
    held, place = here.contiguous().view(torch.int16).to(torch.int32), average.contiguous().view(torch.int32)
    low = place & 0xFFFF
    carry = low >> 15
    new_held = (place >> 16) + carry if to_average else place >> 16
    new_place = ((held if to_average else held - carry) << 16) | low
    return new_held.to(torch.int16).view(torch.bfloat16).to(own.device), new_place.view(torch.float32)


def averages_in(saved: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[torch.Tensor, Any]]:
    """The parameters in these groups with their averages in a saved state, if it is one of so many parameters."""
    names = [name for group in saved.get("param_groups", ()) for name in group["params"]]
    params = [param for group in groups for param in group["params"]]
    for name, param in zip(names, params, strict=True) if len(names) == len(params) else ():
        average = saved.get("state", {}).get(name, {}).get(AVERAGE)
        if average is not None:
            yield param, average
