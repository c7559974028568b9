"""Makes the emo optimizers known when ms-swift (4) imports it; see the package above."""

from typing import Any

from swift.optimizers import OptimizerCallback, optimizers_map  # type: ignore[import-not-found]
from transformers.training_args import OptimizerNames

from emo_hf.optim.family import FAMILY
from emo_hf.trainer.registry import register


def _callback_named(name: str) -> type[Any]:
    """What ms-swift makes an optimizer by; its own `OptimizerCallback` goes the Trainer's way, by `args.optim`."""

    def init(self: Any, args: Any, trainer: Any) -> None:
        args.optim = OptimizerNames(name)
        OptimizerCallback.__init__(self, args, trainer)

    return type(f"{FAMILY[name].__name__}OptimizerCallback", (OptimizerCallback,), {"__init__": init})


register()
optimizers_map.update({name: _callback_named(name) for name in FAMILY})
