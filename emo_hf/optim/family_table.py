"""The family as a table, for the pages: `python -m emo_hf.optim.family_table` prints it."""

from __future__ import annotations

import torch

from emo_hf.optim.family import FAMILY
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.version import Version

HEADER = ("`--optim`", "class", "version", "rule", "law", "lr", "betas", "state, bytes per parameter")
SIDE = 1000


def family_table() -> str:
    """Every optimizer and generation, one Markdown row each, the default generation first."""
    rows = [
        (
            f"`{name}`", cls.__name__, version.name, version.rule.__name__, version.law, f"{version.lr:g}",
            f"{version.betas[0]}, {version.betas[1]}", f"{state_bytes(cls, version):g}",
        )
        for name, cls in FAMILY.items()
        for version in cls.versions.values()
    ]  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows))


def state_bytes(cls: type[EmoOptimizer], version: Version) -> float:
    """Bytes of state per element of a large float32 matrix."""
    param = torch.empty(SIDE, SIDE, device="meta")
    rule = cls([param], version=version.name).rule
    return sum(value.numel() * value.element_size() for value in rule.new_state(param).values()) / param.numel()


if __name__ == "__main__":
    print(family_table())  # noqa: T201  what this module is run for
