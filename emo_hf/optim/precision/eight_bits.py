"""State in 8 bits, and bfloat16 parameters with 8 bits more: the formulas of `kernels/formats.h` in torch.

Blocks of 256 elements share a size s, the largest |x| among them, and are companded as telephones do it (µ-law): of
y = K·|x|/s, the code is the exponent and three bits of the mantissa of y + d, less those of d.

    signed      d = 2⁻¹⁶, codes 0 … 127 and a sign     a momentum: from s/2¹⁹ on it is not 0
    unsigned    d = 2⁻³², codes 0 … 255                an average of squares; what is not 0 does not become 0

K = 15/16 − d, so that the largest code is s. Steps are d/8 around 0, and between 6 and 12 % of large values.

A bfloat16 and a signed byte are the upper 24 bits of a float32. Both are rounded up or down at random, with the right
chance for either, so that what is too small to be seen in one step is not lost over many. The chance comes from the
gradient, the element's place and the step: the same run is the same to the last bit.
"""

from __future__ import annotations

import torch

EIGHT_BITS = "8bit"
"""What the options `state` and `compensate` take."""

BLOCK = 256
SIZES = "_sizes"
"""What follows the name of an 8-bit state tensor in the name of its blocks' sizes."""

SMALLEST = 4096
"""Elements from which on a parameter's state is kept in 8 bits; below, it is float32 and costs nothing."""

D = {torch.int8: 2.0**-16, torch.uint8: 2.0**-32}
D_BITS = {torch.int8: (127 - 16) << 3, torch.uint8: (127 - 32) << 3}
"""What is kept of the bits of d: its exponent, and the first three bits of its mantissa, which are 0."""

DROPPED_BITS = 20
HALF = 1 << (DROPPED_BITS - 1)

_WORD = 0xFFFFFFFF


def is_eight_bit(tensor: torch.Tensor) -> bool:
    """Whether a state tensor is one of codes, to which sizes belong."""
    return tensor.dtype in (torch.int8, torch.uint8)


def blocks_of(elements: int) -> int:
    """How many sizes so many elements need."""
    return -(-elements // BLOCK)


def draw(gradient: torch.Tensor, place: int, seed: int) -> torch.Tensor:
    """Chance for each element of a gradient, flat: 32 bits as int64, the upper ones the better.

    Args:
        gradient: a tensor, or a piece of one.
        place: the place of its first element in the whole tensor.
        seed: of the step.
    """
    words = gradient.detach().reshape(-1).float().view(torch.int32).long() & _WORD
    places = torch.arange(place, place + words.numel(), device=words.device)
    x = words * 0x9E3779B1 + places * 0xC2B2AE35 + _scattered(seed * 0x632BE5AB & _WORD) & _WORD
    return (x ^ x >> 15) * 0x846CA68B & _WORD


def _scattered(x: int) -> int:
    """32 bits, all of which depend on all of x."""
    x = (x ^ x >> 16) * 0x85EBCA6B & _WORD
    x = (x ^ x >> 13) * 0xC2B2AE35 & _WORD
    return x ^ x >> 16


def encode(values: torch.Tensor, dtype: torch.dtype, chance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and sizes of values.

    Args:
        values: float32, of any shape.
        dtype: `torch.int8` for the signed format, `torch.uint8` for the unsigned one.
        chance: what `draw` gave for the elements; None rounds to the nearest.

    Returns:
        The codes, of the values' shape, and the sizes, one a block.
    """
    n, d, is_signed = values.numel(), D[dtype], dtype is torch.int8
    x = torch.zeros(blocks_of(n), BLOCK, dtype=torch.float32, device=values.device)
    x.view(-1)[:n] = values.reshape(-1)
    sizes = x.abs().amax(dim=1)
    by = torch.where(sizes > 1e-30, (0.9375 - d) / sizes, torch.zeros_like(sizes))
    y = (x.abs() * by[:, None]).view(-1)[:n]
    bits: int | torch.Tensor = HALF if chance is None else chance >> 32 - DROPPED_BITS
    codes = ((y + d).view(torch.int32) + bits >> DROPPED_BITS) - D_BITS[dtype]
    if is_signed:
        codes = codes.clamp(max=127)
        codes = torch.where(x.view(-1)[:n] < 0, -codes, codes)
    else:
        codes = torch.where((codes < 1) & (y > 0), torch.ones_like(codes), codes.clamp(max=255))
    return codes.to(dtype).view(values.shape), sizes


def decode(codes: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The values that codes and sizes stand for, in float32."""
    d = D[codes.dtype]
    flat = codes.reshape(-1).int()
    values = ((flat.abs() + D_BITS[codes.dtype]) << DROPPED_BITS).view(torch.float32) - d
    values = values * (sizes / (0.9375 - d)).repeat_interleave(BLOCK)[: flat.numel()]
    return torch.where(flat < 0, -values, values).view(codes.shape)


def join(param: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """The float32 whose upper 24 bits lie in a bfloat16 and its 8-bit correction."""
    upper = param.detach().resolve_neg().contiguous().view(torch.int16).int() & 0xFFFF
    return (((upper << 8) + correction.int()) << 8).view(torch.float32)


def split(values: torch.Tensor, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A bfloat16 and its 8-bit correction for float32 values; `chance` is what `draw` gave for them."""
    bits = values.contiguous().view(torch.int32).long() & _WORD
    special = bits & 0x7FFFFFFF >= 0x7F800000
    kept = torch.where(special, bits & 0xFFC00000, bits + (chance.view(values.shape) >> 24)) >> 8
    low = kept & 0xFF
    correction = torch.where(low > 127, low - 256, low)
    upper = (kept - correction) >> 8 & 0xFFFF
    upper = torch.where(upper > 0x7FFF, upper - 0x10000, upper)
    return upper.to(torch.int16).view(torch.bfloat16), correction.to(torch.int8)
