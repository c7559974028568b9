"""Registers the emo optimizers when ms-swift imports it; see the package above."""

from swift.optimizers import OptimizerCallback, optimizers_map  # type: ignore[import-not-found]

from emo_hf.integrations.ms_swift.optimizers import extend
from emo_hf.trainer.registry import register

register()
extend(optimizers_map, OptimizerCallback)
