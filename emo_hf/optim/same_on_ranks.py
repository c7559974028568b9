"""Which options of an optimizer have to be the same on all ranks that step together."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import Optimizer

from emo_hf.laws.law import Law

MAY_DIFFER = ("params", "lr", "foreach", "fused", "native", "capturable", "differentiable")
"""Options that change nothing but the speed, and the learning rate, which belongs to each rank's scheduler."""


def same_on_ranks(optimizer: Optimizer, law: Law) -> dict[str, str]:
    """The options by name, as text.

    Args:
        optimizer: an optimizer; where its groups have different values of an option, all are named.
        law: the law that it follows.
    """
    options: dict[str, Any] = {"optimizer": type(optimizer).__name__, "emo_law": law.label}
    options |= {f"{name} of {law.name}": getattr(law, name) for name in law.options}
    version = getattr(optimizer, "version", None)
    if version is not None:
        options["version"] = version
    for name in optimizer.defaults.keys() - set(MAY_DIFFER):
        values = [str(group[name]) for group in optimizer.param_groups if name in group]
        # Ranks of a pipeline may have groups that others lack.
        options[name] = ", ".join(dict.fromkeys(values)) if values else optimizer.defaults[name]
    return {name: str(value) for name, value in options.items()}
