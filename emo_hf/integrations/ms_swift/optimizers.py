"""The family in ms-swift's own table of optimizers (ms-swift 4)."""

from __future__ import annotations

from typing import Any

from emo_hf.optim.family import FAMILY


def callback_named(name: str, base: type[Any]) -> type[Any]:
    """What ms-swift makes an optimizer by.

    Args:
        name: the optimizer's name in the family.
        base: ms-swift's `OptimizerCallback`, whose own way is that of the Trainer.
    """

    def init(self: Any, args: Any, trainer: Any) -> None:
        from transformers.training_args import OptimizerNames

        args.optim = OptimizerNames(name)
        base.__init__(self, args, trainer)

    return type(f"{FAMILY[name].__name__}OptimizerCallback", (base,), {"__init__": init})


def extend(optimizers_map: dict[str, Any], base: type[Any]) -> None:
    """Add the family to ms-swift's table, which `--optimizer` is looked up in."""
    optimizers_map.update({name: callback_named(name, base) for name in FAMILY})
