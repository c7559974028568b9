"""emo optimizers for the Hugging Face ecosystem.

Importing this package imports torch and nothing of Hugging Face; what needs more is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from emo_hf.integrations import accelerate as _accelerate  # noqa: F401  wires the optimizers to accelerate when they are made
from emo_hf.optim import EmoFact, EmoLynx, EmoNavi, EmoOptimizer, EmotionView

if TYPE_CHECKING:
    from emo_hf.trainer.callbacks import EmoCallback, EmoEarlyStoppingCallback
    from emo_hf.trainer.checkpoints import last_whole_checkpoint
    from emo_hf.trainer.factory import create_optimizer
    from emo_hf.trainer.param_groups import GroupOptions, build_param_groups
    from emo_hf.trainer.registry import register, unregister

__version__ = "0.1.0"

_LAZY = {
    "EmoCallback": "emo_hf.trainer.callbacks",
    "EmoEarlyStoppingCallback": "emo_hf.trainer.callbacks",
    "GroupOptions": "emo_hf.trainer.param_groups",
    "build_param_groups": "emo_hf.trainer.param_groups",
    "create_optimizer": "emo_hf.trainer.factory",
    "last_whole_checkpoint": "emo_hf.trainer.checkpoints",
    "register": "emo_hf.trainer.registry",
    "unregister": "emo_hf.trainer.registry",
}

__all__ = [
    "EmoCallback",
    "EmoEarlyStoppingCallback",
    "EmoFact",
    "EmoLynx",
    "EmoNavi",
    "EmoOptimizer",
    "EmotionView",
    "GroupOptions",
    "build_param_groups",
    "create_optimizer",
    "last_whole_checkpoint",
    "register",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
