"""What optimizers choose on a GPU without Triton, and with one that does not work. No GPU is needed to choose."""

from __future__ import annotations

import sys

import torch

from emo_hf import FAMILY
from emo_hf.optim.kernels.gpu import available

sys.modules["triton"] = None  # type: ignore[assignment]
EXPECTED = {"EmoNavi": "fused", "EmoLynx": "foreach", "EmoFact": "foreach", "EmoNeco": "single"}


class OnGpu:
    """What the choice reads of a parameter."""

    dtype, device = torch.float32, torch.device("cuda:0")


def chosen(name: str) -> str:
    optimizer = FAMILY[name.lower()]([torch.nn.Parameter(torch.ones(1))])
    return optimizer._buckets.implementation(optimizer.param_groups[0], OnGpu())  # type: ignore[arg-type]


for installed in (False, True):
    available.has_triton = lambda installed=installed: installed  # type: ignore[misc]
    found = {name: chosen(name) for name in EXPECTED}
    assert found == EXPECTED, (installed, found)
available._launches = lambda device: True  # type: ignore[assignment]
found = {name: chosen(name) for name in EXPECTED}
assert set(found.values()) == {"triton"}, found
