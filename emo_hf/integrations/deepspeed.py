"""DeepSpeed: under ZeRO-Offload the optimizer that was asked for stays.

Where the optimizer's state is offloaded and the configuration does not say `"zero_force_ds_cpu_optimizer": false`,
accelerate makes a DeepSpeedCPUAdam of any optimizer, with its learning rates and weight decay only, and says nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emo_hf.optim.attachment import attached_to
from emo_hf.optim.optimizer import EmoOptimizer

if TYPE_CHECKING:
    from accelerate import Accelerator

FORCE = "zero_force_ds_cpu_optimizer"

logger = logging.getLogger(__name__)


def keeping_the_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Accelerator._prepare_deepspeed`, which leaves an optimizer with an emotion what it is."""

    def prepare(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        with_emotion = [arg for arg in args if isinstance(arg, EmoOptimizer) or attached_to(arg) is not None]
        config = self.state.deepspeed_plugin.deepspeed_config if with_emotion else {}
        offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
        if offload.get("device", "none") != "none" and config.get(FORCE, True):
            config[FORCE] = False
            if self.is_main_process:
                logger.warning(
                    'Set "%s": false in the DeepSpeed configuration: with an offloaded optimizer state accelerate '
                    "would have put DeepSpeedCPUAdam in the place of %s.",
                    FORCE, type(with_emotion[0]).__name__,
                )  # fmt: skip
        return original(self, *args, **kwargs)

    return prepare
