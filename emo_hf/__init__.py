"""emo optimizers for the Hugging Face ecosystem.

Importing this package imports torch and nothing of Hugging Face; what needs more is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from emo_hf.laws.decision import EmotionView
from emo_hf.optim import family as _family
from emo_hf.optim.attach import attach
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.family import *
from emo_hf.optim.family import FAMILY
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.step_in_backward import step_in_backward

if TYPE_CHECKING:
    from emo_hf.integrations.backward import feel_backward
    from emo_hf.integrations.torchao_offload import sharing_one_emotion
    from emo_hf.nodes.averaging import average_saved
    from emo_hf.nodes.local_sgd import LocalSGDCallback
    from emo_hf.nodes.weight_exchange import WeightExchange, WeightExchangeCallback
    from emo_hf.trainer.callbacks import EmoCallback, EmoEarlyStoppingCallback
    from emo_hf.trainer.checkpoints import last_whole_checkpoint
    from emo_hf.trainer.factory import create_optimizer
    from emo_hf.trainer.param_groups import GroupOptions, build_param_groups
    from emo_hf.trainer.registry import register, unregister

__version__ = "0.2.0.dev0"

_LAZY = {
    "EmoCallback": "emo_hf.trainer.callbacks",
    "EmoEarlyStoppingCallback": "emo_hf.trainer.callbacks",
    "GroupOptions": "emo_hf.trainer.param_groups",
    "LocalSGDCallback": "emo_hf.nodes.local_sgd",
    "WeightExchange": "emo_hf.nodes.weight_exchange",
    "WeightExchangeCallback": "emo_hf.nodes.weight_exchange",
    "average_saved": "emo_hf.nodes.averaging",
    "build_param_groups": "emo_hf.trainer.param_groups",
    "create_optimizer": "emo_hf.trainer.factory",
    "feel_backward": "emo_hf.integrations.backward",
    "last_whole_checkpoint": "emo_hf.trainer.checkpoints",
    "register": "emo_hf.trainer.registry",
    "sharing_one_emotion": "emo_hf.integrations.torchao_offload",
    "unregister": "emo_hf.trainer.registry",
}

if not TYPE_CHECKING:  # type checkers read the imports
    __all__ = [
        *("FAMILY", "Attachment", "EmoOptimizer", "EmotionView", "attach", "step_in_backward"),
        *_family.__all__,
        *_LAZY,
    ]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
