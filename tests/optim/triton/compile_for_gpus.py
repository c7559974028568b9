"""Compiles the kernels to machine code for GPUs that are not here: Triton needs none for that."""

from __future__ import annotations

import re
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from emo_hf.optim.kernels.gpu import launch
from emo_hf.optim.kernels.gpu.available import kernel

ARGUMENTS = {"table": "*i64", "left_out": "*i64", "sums": "*fp32", "count": "i32", "seed": "i32", "total": "i32"}
AMPERE, HOPPER = (GPUTarget("cuda", capability, 32) for capability in (80, 90))
FLOATS = dict.fromkeys("PGAB", tl.float32) | {"C": None}
LOW = dict.fromkeys("PGC", tl.bfloat16) | dict.fromkeys("AB", tl.float32)
IN_8_BITS = {"P": tl.bfloat16, "G": tl.bfloat16, "C": tl.int8, "A": tl.int8, "B": tl.uint8}


def compiled(name: str, target: GPUTarget = HOPPER, **constants: Any) -> str:
    """The assembly of a kernel with such constants."""
    function = kernel(name)
    names = function.arg_names
    constants = {key: value for key, value in constants.items() if key in names}
    signature = {arg: "constexpr" if arg in constants else ARGUMENTS.get(arg, "fp32") for arg in names}
    places = {(names.index(key),): value for key, value in constants.items()}
    made = triton.compile(ASTSource(fn=function, signature=signature, constexprs=places), target=target)
    assert made.asm["cubin"], name
    return str(made.asm["ptx"])


def count(pattern: str, assembly: str) -> int:
    return len(re.findall(pattern, assembly))


for rule, states, formats in (("navi", 2, LOW), ("lynx", 1, FLOATS), ("fact_vector", 1, FLOATS), ("sign", 0, LOW)):
    ways = {"RULE": kernel(f"elementwise.{rule}"), "LEAVE_OUT": True, "BLOCK": launch.BLOCK, "BLOCKS": launch.BLOCKS}
    absent = dict.fromkeys("AB"[states:])
    for aligned in (True, False) if rule == "lynx" else (True,):
        made = compiled("elementwise.move", CHANCE=False, ALIGNED=aligned, **ways, **formats | absent)
        assert (count(r"ld\.global\.v4\.b32", made) >= 2 + states) is aligned, rule
        assert (count(r"st\.global\.v4\.b32", made) >= 1 + states) is aligned, rule
        assert (count(r"cvt\.rn\.bf16", made) > 0) is (formats is LOW), rule
    # A thread has eight elements: 16 bytes of bfloat16, and 8 of codes.
    made = compiled("elementwise.move", AMPERE, CHANCE=True, ALIGNED=True, **ways, **IN_8_BITS | absent)
    assert count(r"ld\.global\.v4\.b32", made) >= 2, rule
    assert count(r"ld\.global\.v2\.b32", made) >= 1 + states, rule
    assert count(r"st\.global\.v2\.b32", made) >= 1 + states, rule
for target, formats, wide in ((HOPPER, FLOATS, 2), (AMPERE, IN_8_BITS, 3)):
    of_regions = {"LEAVE_OUT": True, "ALIGNED": True, **launch.REGION, **formats}
    assert count(r"ld\.global\.v4\.b32", compiled("fact.squares", target, **of_regions)) >= 1
    assert count(r"ld\.global\.v4\.b32", compiled("fact.move", target, **of_regions)) >= wide
compiled("fact.sizes", AMPERE, LEAVE_OUT=True, LENGTH=launch.LENGTH, SHARES=launch.SHARES)
print("compiled")
