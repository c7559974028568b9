"""emo optimizers for the Hugging Face ecosystem.

Importing this package imports nothing else: what a name stands for is loaded when it is first asked for. The
optimizers need torch alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emo_hf.integrations.backward import feel_backward
    from emo_hf.laws.decision import EmotionView
    from emo_hf.nodes.averaging import average_saved
    from emo_hf.nodes.local_sgd import LocalSGDCallback
    from emo_hf.nodes.weight_exchange import WeightExchange, WeightExchangeCallback
    from emo_hf.optim.attach import attach
    from emo_hf.optim.attachment import Attachment
    from emo_hf.optim.backward import step_in_backward
    from emo_hf.optim.family import *
    from emo_hf.optim.family import FAMILY
    from emo_hf.optim.optimizer import EmoOptimizer
    from emo_hf.trainer.callbacks import EmoCallback, EmoEarlyStoppingCallback
    from emo_hf.trainer.checkpoints import last_whole_checkpoint
    from emo_hf.trainer.factory import create_optimizer
    from emo_hf.trainer.param_groups import GroupOptions, build_param_groups
    from emo_hf.trainer.registry import register, unregister

__version__ = "0.2.0"

_FAMILY = "emo_hf.optim.family"
"""The module of the optimizers, whose names are those of its `__all__`."""

_LAZY = {
    "Attachment": "emo_hf.optim.attachment",
    "EmoCallback": "emo_hf.trainer.callbacks",
    "EmoEarlyStoppingCallback": "emo_hf.trainer.callbacks",
    "EmoOptimizer": "emo_hf.optim.optimizer",
    "EmotionView": "emo_hf.laws.decision",
    "FAMILY": _FAMILY,
    "GroupOptions": "emo_hf.trainer.param_groups",
    "LocalSGDCallback": "emo_hf.nodes.local_sgd",
    "WeightExchange": "emo_hf.nodes.weight_exchange",
    "WeightExchangeCallback": "emo_hf.nodes.weight_exchange",
    "attach": "emo_hf.optim.attach",
    "average_saved": "emo_hf.nodes.averaging",
    "build_param_groups": "emo_hf.trainer.param_groups",
    "create_optimizer": "emo_hf.trainer.factory",
    "feel_backward": "emo_hf.integrations.backward",
    "last_whole_checkpoint": "emo_hf.trainer.checkpoints",
    "register": "emo_hf.trainer.registry",
    "step_in_backward": "emo_hf.optim.backward",
    "unregister": "emo_hf.trainer.registry",
}
"""Where each name lies that is no optimizer."""


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [*_LAZY, *importlib.import_module(_FAMILY).__all__]
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if not name.startswith("_"):
        family = importlib.import_module(_FAMILY)
        if name in family.__all__:
            return getattr(family, name)
        if name in globals():  # a room, such as `emo_hf.optim`, that has come with it
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
