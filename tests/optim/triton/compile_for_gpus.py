"""Compiles the kernels to machine code for GPUs that are not here: Triton needs none for that."""

from __future__ import annotations

import re
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from emo_hf.optim.kernels.gpu import elementwise, fact
from emo_hf.optim.kernels.gpu.available import kernel

POINTERS = {
    "table": "*i64", "owners": "*i32", "scales": "*fp32", "left_out": "*i64", "sums": "*fp32", "found": "*fp32",
    "lacking": "*i32", "count": "i32", "programs": "i32",
    "seed": "i32",
}  # fmt: skip
AMPERE, HOPPER = (GPUTarget("cuda", capability, 32) for capability in (80, 90))
PIECE = {"BLOCK": elementwise.BLOCK, "BLOCKS": elementwise.BLOCKS}


def compiled(name: str, target: GPUTarget = HOPPER, **constants: Any) -> str:
    """The assembly of a kernel with such constants."""
    function = kernel(name)
    names = function.arg_names
    signature = {arg: "constexpr" if arg in constants else POINTERS.get(arg, "fp32") for arg in names}
    places = {(names.index(key),): value for key, value in constants.items()}
    made = triton.compile(ASTSource(fn=function, signature=signature, constexprs=places), target=target)
    assert made.asm["cubin"], name
    return str(made.asm["ptx"])


def count(pattern: str, assembly: str) -> int:
    return len(re.findall(pattern, assembly))


WAYS = [("navi", 2, False), ("lynx", 1, False), ("fact_vector", 1, False), ("sign", 0, False), ("neco", 1, True)]
for rule, states, scaled in WAYS:
    low = rule in ("navi", "sign")
    p = tl.bfloat16 if low else tl.float32
    formats = {"P": p, "G": p, "C": p, "A": tl.float32, "B": tl.float32}
    ways = {"RULE": rule, "STATES": states, "SCALED": scaled, "COMPENSATED": low, "LEAVE_OUT": True}
    ways["EIGHT_BITS"] = False
    for aligned in (True, False) if rule == "lynx" else (True,):
        made = compiled("elementwise.move", ALIGNED=aligned, **ways, **formats, **PIECE)
        assert (count(r"ld\.global\.v4\.b32", made) >= 2 + states) is aligned, rule
        assert (count(r"st\.global\.v4\.b32", made) >= 1 + states) is aligned, rule
        assert (count(r"cvt\.rn\.bf16", made) > 0) is low, rule
    # A thread has eight elements: 16 bytes of bfloat16, and 8 of codes.
    formats = {"P": tl.bfloat16, "G": tl.bfloat16, "C": tl.int8, "A": tl.int8, "B": tl.uint8}
    ways |= {"COMPENSATED": True, "EIGHT_BITS": True}
    for target in (AMPERE, HOPPER):
        made = compiled("elementwise.move", target, ALIGNED=True, **ways, **formats, **PIECE)
        assert count(r"ld\.global\.v4\.b32", made) >= 2, rule
        assert count(r"ld\.global\.v2\.b32", made) >= 1 + states, rule
        assert count(r"st\.global\.v2\.b32", made) >= 1 + states, rule
for region in (fact.WIDE, fact.NARROW):
    of_regions = {"ROWS": region.rows, "COLUMNS": region.columns, "STEPS": region.steps, "LEAVE_OUT": True}
    squares = compiled("fact.squares", ALIGNED=True, G=tl.float32, **of_regions)
    floats = {"P": tl.float32, "G": tl.float32, "C": tl.float32, "COMPENSATED": False}
    moved = compiled("fact.move", ALIGNED=True, **floats, **of_regions)
    assert all(count(r"ld\.global\.v4\.b32", made) >= 2 for made in (squares, moved))
    in_24_bits = {"P": tl.bfloat16, "G": tl.bfloat16, "C": tl.int8, "COMPENSATED": True}
    made = compiled("fact.move", AMPERE, ALIGNED=True, **in_24_bits, **of_regions)
    assert count(r"ld\.global\.v4\.b32", made) >= 3, region
compiled("fact.sizes", AMPERE, LEAVE_OUT=True, LENGTH=fact.LENGTH, SHARES=fact.SHARES)
compiled("norms.squares", AMPERE, G=tl.float16, LEAVE_OUT=True, ALIGNED=True, **PIECE)
compiled("norms.scales", AMPERE, BLOCK=elementwise.SUMMED)
print("compiled")
